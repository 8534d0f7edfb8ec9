"""The standard streams of a command: each may be closed, full, or without a reader.

A closed stream becomes /dev/null, because otherwise the next file that is opened takes its number and receives what is
printed. Standard output that cannot be written ends the command with one line: its reader would miss results. Standard
error that cannot be written does not.
"""

import atexit
import io
import os
import sys
from typing import Any

from bert_jax.errors import UserError
from bert_jax.wrapping import WrappingText

PIPE_CLOSED = 141  # the status of a command killed by SIGPIPE


class _Output(io.FileIO):
    """Standard output. Once it cannot be written, nothing more is."""

    def write(self, data: Any, /) -> int | None:
        """Write some bytes."""
        try:
            return super().write(data)
        except BrokenPipeError:
            _silence(self.fileno())
            raise SystemExit(PIPE_CLOSED) from None  # `... | head`: the command ends quietly
        except OSError as error:
            _silence(self.fileno())
            raise UserError(
                f"standard output cannot be written ({error.strerror}): free disk space, or redirect it elsewhere, "
                "then run the same command again"
            ) from None


class _Errors(io.FileIO):
    """Standard error, whose failures are ignored: there is nowhere to report them."""

    def write(self, data: Any, /) -> int | None:
        """Write some bytes."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Make the standard streams of this process safe to use. Call it before files are opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    sys.stdout = _stream(sys.stdout, 1, _Output)
    sys.stderr = _stream(sys.stderr, 2, _Errors)
    atexit.register(_flush_at_exit)


def require_output(*, remedy: str) -> None:
    """Check that standard output goes somewhere, for a command that writes its results there.

    Raises:
      UserError: if it was closed, followed by `remedy`.
    """
    if getattr(sys.stdout, "name", "") == os.devnull:
        raise UserError(f"standard output is closed: {remedy}")


def flush() -> None:
    """Write what is buffered, so that a failure is reported and not met at exit."""
    sys.stdout.flush()


def _stream(stream: Any, number: int, kind: type[io.FileIO]) -> Any:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")  # noqa: PTH123
    try:
        is_ours = isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:  # a notebook's or a test's
        return stream
    stream.flush()
    # No name of a file is unprintable: what the encoding does not have is escaped.
    return WrappingText(
        io.BufferedWriter(kind(number, "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,  # in a pipe or a file, too: a log that stays empty for minutes looks like a hang
        write_through=number == 2,
    )


def _flush_at_exit() -> None:
    """Report a failure in a line: Python would write a traceback."""
    try:
        flush()
    except (UserError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)


def _silence(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
