"""Lines as wide as the terminal: broken between words, with the rest indented."""

import io
import os
import re
from typing import TextIO

_MIN_WIDTH = 20
# JSON is data, and what is indented by four spaces is a command to copy: the terminal breaks it without a line end.
_AS_IT_IS = re.compile(r"    |\s*[\[\]{}\"]")


class WrappingText(io.TextIOWrapper):
    """A standard stream that wraps lines at the width of its terminal; in a file or a pipe, each stays one line."""

    def write(self, text: str, /) -> int:
        """Write a text, lines of which begin at the left edge."""
        super().write(text if "\r" in text or "\x1b" in text else wrap(text, width=line_width(self)))  # else: a bar
        return len(text)


def line_width(stream: TextIO) -> int:
    """Return the columns of the terminal that a stream is, 0 if it is a file or a pipe."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0


def wrap(text: str, *, width: int) -> str:
    """Return `text` with lines of more than `width` columns broken at spaces; a width of 0 is unlimited."""
    if width < _MIN_WIDTH or len(text) <= width:
        return text
    return "\n".join(line if _AS_IT_IS.match(line) else _wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    lines: list[str] = []
    while len(line) > width:
        end = line.rfind(" ", len(indent), width + 1)
        if end < 0:  # a word as long as the line: the terminal breaks it
            end = line.find(" ", width)
        if end < 0 or not line[end:].strip():
            break
        lines.append(line[:end].rstrip(" "))
        line = indent + line[end:].lstrip(" ")
    return "\n".join([*lines, line])
