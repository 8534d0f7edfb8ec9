"""What runs have recorded of themselves: the seconds that they took, over all starts."""

import contextlib
from pathlib import Path

from bert_jax.json_files import load_json
from bert_jax.runs.goodput import FILE

_NOT_RUNNING = "down"


def goodput_seconds(folder: Path) -> float:
    """Return the seconds that the runs in `folder` have run; unreadable files count as 0."""
    total = 0.0
    for file in folder.rglob(FILE):
        with contextlib.suppress(OSError, ValueError, KeyError):
            seconds: dict[str, float] = load_json(file)["seconds"]
            total += sum(value for kind, value in seconds.items() if kind != _NOT_RUNNING)
    return total
