"""The finished runs of a benchmark in a file of JSON lines: one that was killed continues with what is missing."""

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Return the finished runs in a file, none where there is no file. A last line truncated by a kill is ignored."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_line(path: Path, line: Line) -> None:
    """Append a finished run; folders are made, and a truncated line is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        path.write_text("".join(json.dumps(done) + "\n" for done in read_lines(path)), encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
