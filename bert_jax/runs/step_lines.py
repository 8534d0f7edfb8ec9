"""JSON lines of steps, which a resumed run continues: what a killed run wrote after its last checkpoint is repeated."""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bert_jax.files import RESUME, open_regular, write_bytes, writing
from bert_jax.json_files import parse_object
from bert_jax.json_forms import Count, fit


class Unbuffered(Protocol):
    """A file opened without a buffer: closing it must not retry a failed write."""

    def write(self, content: bytes, /) -> int | None:
        """Write and return the number of bytes written."""
        ...


def keep_lines(path: Path, *, resume_step: int, parse: Callable[[bytes], Mapping[str, Any]] = parse_object) -> None:
    """Remove lines of steps after `resume_step`, those that `parse` refuses, and a partial last line.

    Raises:
      UserError: if the file cannot be written.
    """
    if path.exists():
        with writing(path, remedy=RESUME):
            with open_regular(path) as file:
                lines = file.read().splitlines(keepends=True)
            write_bytes(path, b"".join(line for line in lines if _step(line, parse) <= resume_step))


def append_line(file: Unbuffered, record: Mapping[str, Any], *, path: Path) -> None:
    """Append a JSON object.

    Raises:
      UserError: if the file cannot be written.
    """
    line = (json.dumps(record) + "\n").encode()
    with writing(path, remedy=RESUME):
        if (file.write(line) or 0) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _step(line: bytes, parse: Callable[[bytes], Mapping[str, Any]]) -> float:
    try:
        return fit(parse(line)["step"], Count) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError):
        return math.inf
