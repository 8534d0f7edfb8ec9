"""The one exception that means: the user can mend this, and here is how."""


class UserError(Exception):
    """Report something the user can mend, in one line.

    The message names the field or file and says what to type. A command prints it and exits with status 2; nothing
    below a command catches it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
