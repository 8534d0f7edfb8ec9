"""How far a job is stands on a terminal's bar, or in a line at intervals, in words that all commands share."""

import io
import sys
import time

import pytest

from bert_jax import progress
from bert_jax.progress import ByteProgress, format_bytes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    now = {"now": 100.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["now"])
    return now


def test_bytes_are_reported_at_intervals_with_share_speed_and_time_left(clock: dict[str, float]):
    lines: list[str] = []
    shown = ByteProgress("reading", total=1_000_000_000, report=lines.append)
    clock["now"] += progress.INTERVAL_SECONDS / 2
    shown.advance(50_000_000)
    assert lines == []
    clock["now"] += progress.INTERVAL_SECONDS / 2
    shown.advance(50_000_000)
    assert lines == ["reading: 10% of 1.0 GB, 10.0 MB/s, 1 min 30 s left"]
    clock["now"] += progress.INTERVAL_SECONDS
    shown.advance(2_000_000_000)  # the total was an estimate
    assert lines[1].startswith("reading: 99% of 1.0 GB")
    assert lines[1].endswith(", 0 s left")
    shown.finish()
    assert len(lines) == 2


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch):
    terminal, lines = Terminal(), []
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    shown = ByteProgress("reading", total=1000, report=lines.append)
    shown.advance(1000)
    shown.finish()
    assert "reading" in terminal.getvalue()
    assert lines == []


@pytest.mark.parametrize(
    ("amount", "words"), [(999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")]
)
def test_sizes_are_in_decimal_units(amount: float, words: str):
    assert format_bytes(amount) == words
