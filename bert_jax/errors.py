"""The exception for errors that the user can fix; its message says how."""


class UserError(Exception):
    """An error that the user can fix, described in one line.

    The message names the field or file and says what to type. A command prints it and exits with status 2; only
    commands catch it.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
