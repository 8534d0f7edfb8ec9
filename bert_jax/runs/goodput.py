"""Goodput: how a run's wall time splits into useful steps and overhead, over all its starts.

WORKDIR/goodput.json is rewritten with every log line and every save. A start that resumes counts the steps recorded
there beyond its checkpoint as lost, and the time from the last write to the new start as down.
"""

import array
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from bert_jax.files import RESUME, write_json, writing
from bert_jax.json_files import load_json
from bert_jax.json_forms import Count, Seconds
from bert_jax.progress import duration

FILE = "goodput.json"
PERCENTILES = (50, 90, 99)
# The kinds of wall time, with their names in the closing line; "other" is the unaccounted rest.
KINDS = {
    "useful": "useful steps",
    "startup": "start-up",
    "compile": "compiling",
    "data_wait": "waiting for data",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
    "lost": "lost work",
    "down": "down",
    "other": "other",
}


class _Last(TypedDict):
    """The last moment that a start recorded."""

    seen: Seconds
    start: Count
    step: Count
    useful: Seconds


class _Record(TypedDict):
    """The content of the file."""

    starts: Count
    lost_steps: Count
    most_lost_steps: Count
    seconds: dict[str, Seconds]
    compile_seconds: NotRequired[Seconds | None]
    last: _Last


class _Kinds(TypedDict):
    """The part of the file that a page shows."""

    seconds: dict[str, Seconds]


class Goodput:
    """Seconds by kind, summed over this start and the earlier starts recorded in the file."""

    def __init__(self, directory: Path | None, *, started_at: float, start: int):
        """Start at step `start`; the process started at `started_at` (seconds since the epoch)."""
        self._path = directory / FILE if directory else None
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._started_at, self._start, self._step = started_at, start, start
        self._times = array.array("f")  # step times since this start: 4 MB per million steps
        self.starts, self.lost_steps, self.most_lost_steps = 1, 0, 0
        self._before = dict.fromkeys(KINDS, 0.0)
        self.compile_seconds: float | None = None  # of the first program, at the newest start that compiled one
        if self._path and self._path.exists():
            self._add_earlier_starts(self._path)
        self.add("startup", time.time() - started_at)
        self.first_step_after: float | None = None

    def add(self, kind: str, seconds: float) -> None:
        """Count `seconds` as spent on one of `KINDS`."""
        self._seconds[kind] += seconds

    def spent(self, kind: str) -> float:
        """Return the seconds that this start has spent on one of `KINDS`."""
        return self._seconds[kind]

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of the body."""
        start = time.perf_counter()
        yield
        self.add(kind, time.perf_counter() - start)

    def finished_step(self, step: int, *, seconds: float, compiled: bool) -> None:
        """Count a step. If its program was `compiled` meanwhile, its time counts as compiling."""
        self._step = step
        if self.first_step_after is None:
            self.first_step_after = time.time() - self._started_at
        if compiled:
            if not self._seconds["compile"]:
                self.compile_seconds = seconds
            self.add("compile", seconds)
        else:
            self.add("useful", seconds)
            self._times.append(seconds)

    def metrics(self) -> dict[str, float | None]:
        """Return the fraction of wall time spent on useful steps so far, and the seconds of each kind."""
        seconds = self._total()
        metrics: dict[str, float | None] = {"perf/goodput": self._fraction(seconds)}
        return metrics | {f"perf/{kind}_seconds": value for kind, value in seconds.items()}

    def describe(self, *, briefly: bool = False) -> str:
        """Return the closing line; `briefly` without what is in `metrics`."""
        seconds = self._total()
        wall = max(sum(seconds.values()), 1e-9)
        if briefly:
            return f"time: {duration(wall)}, {self._fraction(seconds):.0%} of it training steps"
        percent = {name: f"{seconds[kind] / wall:.1%}" for kind, name in KINDS.items()}
        percent = {name: text for name, text in percent.items() if name != KINDS["useful"] and text != "0.0%"}
        if self.lost_steps:
            percent[KINDS["lost"]] = (
                f"{seconds['lost'] / wall:.1%} ({self.lost_steps} steps, at most {self.most_lost_steps} at once)"
            )
        rest = ", ".join(f"{name} {text}" for name, text in percent.items())
        starts = f"{self.starts} start{'s' if self.starts > 1 else ''}"
        line = f"goodput {self._fraction(seconds):.1%} of {duration(wall)} in {starts}; {rest}"
        if not self._times:
            return line
        return f"{line}; step time {', '.join(f'p{p} {t:.3g} s' for p, t in percentiles(self._times).items())}"

    def write(self) -> None:
        """Save the totals for the next start.

        Raises:
          UserError: if the file cannot be written.
        """
        if self._path is None:
            return
        record = {
            "starts": self.starts,
            "lost_steps": self.lost_steps,
            "most_lost_steps": self.most_lost_steps,
            "seconds": self._total(),
            "compile_seconds": self.compile_seconds,
            "last": {"seen": time.time(), "start": self._start, "step": self._step, "useful": self._seconds["useful"]},
        }
        with writing(self._path, remedy=RESUME):
            # Written with every log line, so without fsync.
            write_json(self._path, record, indent=None, durable=False)

    def _add_earlier_starts(self, path: Path) -> None:
        """Add the seconds of earlier starts; an unreadable file is ignored rather than stopping the run."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            record: _Record = load_json(path, form=_Record)
            before = {kind: record["seconds"][kind] for kind in KINDS}
            last = record["last"]
            self.compile_seconds = record.get("compile_seconds")
            lost = max(last["step"] - self._start, 0)
            num_steps = max(last["step"] - last["start"], 1)
            seconds = min(lost * last["useful"] / num_steps, before["useful"])
            before["useful"] -= seconds
            before["lost"] += seconds
            before["down"] += max(self._started_at - last["seen"], 0.0)
            self.most_lost_steps = max(record["most_lost_steps"], lost)
            self.starts, self.lost_steps = record["starts"] + 1, record["lost_steps"] + lost
            self._before = before

    def _total(self) -> dict[str, float]:
        now = dict(self._seconds)
        now["other"] = max(time.time() - self._started_at - sum(now.values()), 0.0)
        return {kind: now[kind] + self._before[kind] for kind in KINDS}

    @staticmethod
    def _fraction(seconds: dict[str, float]) -> float:
        return seconds["useful"] / max(sum(seconds.values()), 1e-9)


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the seconds of wall time by kind that the run in `folder` has recorded; none if its file is unreadable."""
    with contextlib.suppress(OSError, ValueError):
        record: _Kinds = load_json(folder / FILE, form=_Kinds)
        return record["seconds"]
    return {}


def percentiles(times: Any) -> dict[int, float]:
    """Return the percentiles of step times in seconds, by percentile."""
    return dict(zip(PERCENTILES, map(float, np.percentile(np.asarray(times), PERCENTILES)), strict=True))
