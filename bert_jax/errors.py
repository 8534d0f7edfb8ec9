"""The exception for what the user can fix, with a message that says how."""


class UserError(Exception):
    """Something the user can fix, in one line.

    The message names the field or file and says what to type. A command prints it and exits with status 2; nothing
    below a command catches it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
