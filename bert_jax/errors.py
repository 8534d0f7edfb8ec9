"""The exception for errors that the user can fix; its message says how."""

import difflib
import re
from collections.abc import Collection

_LONGEST = 2000  # characters of a message: a value in it may have megabytes
_COMPARED = 200  # characters of a name that may be misspelled; the comparison takes 40 bytes for each
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # also sequences that change a terminal


class UserError(Exception):
    """An error that the user can fix, described in one line.

    The message names the field or file and says what to type. A command prints it and exits with status 2; only
    commands catch it.
    """

    def __init__(self, message: str):
        if len(message) > 10 * _LONGEST:
            message = f"{message[: 5 * _LONGEST]} {message[-5 * _LONGEST :]}"
        text = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", " ".join(message.split()))
        if len(text) > _LONGEST:  # the end says what to type
            text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
        super().__init__(text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 row", "2 rows"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def closest(value: str, choices: Collection[str], *, n: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return up to `n` choices that are spelled like a value, which may have megabytes: its start is compared."""
    return difflib.get_close_matches(value[:_COMPARED], choices, n=n, cutoff=cutoff)


def choose_one(value: str, choices: Collection[str]) -> str:
    """Return what to type in place of a value that is not one of `choices`."""
    near = closest(value, [choice for choice in choices if choice], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}choose one of {', '.join(choice or repr(choice) for choice in choices)}"
