"""What runs have recorded of themselves: the seconds that they took, over all starts."""

from pathlib import Path

from bert_jax.runs.goodput import FILE, read_seconds

_NOT_RUNNING = "down"


def goodput_seconds(folder: Path) -> float:
    """Return the seconds that the runs in `folder` have run; unreadable files count as 0."""
    recorded = (read_seconds(file.parent) for file in folder.rglob(FILE))
    return sum(value for seconds in recorded for kind, value in seconds.items() if kind != _NOT_RUNNING)
