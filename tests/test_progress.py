"""How far a job is stands on a terminal's bar, or in a line at intervals, in words that all commands share."""

import io
import re
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bert_jax import progress
from bert_jax.finetuning.task_data import load_task_data
from bert_jax.progress import ByteProgress, format_bytes
from bert_jax.runs.progress import Progress


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


def test_at_80_columns_the_bar_of_a_run_shows_loss_rate_and_eta_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    shown = Progress(start=0, end=1_000_000)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.001)
    for seconds in (95.0, None):
        with shown.compiling(seconds):
            while not re.search(r"compiling: 0 s", terminal.getvalue()):
                time.sleep(0.001)
    for step in (1, 123_456):
        shown.advance(step)
        shown.line(step, metrics={"train/loss": 12.3456, "train/mlm_loss": 11.0, "perf/sequences_per_second": 4567.8})
    shown.close()
    lines = [part for part in re.split(r"[\r\n]", terminal.getvalue()) if part.strip()]
    bars = [line for line in lines if "|" in line]
    assert re.search(r" 12%\|.*\| 123456/1000000 \[ETA [\d:]+, .*(step/s|s/step), loss 12\.346\]", bars[-1])
    assert max(map(len, bars)) <= 80
    printed = capsys.readouterr().out.splitlines()  # stays above the bar
    assert "step 123456/1000000  loss 12.346  mlm 11.000  4567.8 seq/s" in printed
    compiling = [line for line in printed if line.startswith("compiling")]
    assert compiling == ["compiling, about 1 min 35 s; the bar moves afterwards"]  # the first step of a run alone


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_job_without_a_measure_shows_for_how_long_it_has_run(is_terminal: bool, monkeypatch: pytest.MonkeyPatch):
    error, lines, reported = Terminal() if is_terminal else io.StringIO(), [], threading.Event()
    monkeypatch.setattr(sys, "stderr", error)
    monkeypatch.setattr(progress, "CLOCK_SECONDS", {True: 0.001, False: 0.001})

    def report(line: str) -> None:
        lines.append(line)
        reported.set()

    with progress.clock("compiling", report=report):
        if is_terminal:
            while "compiling: 0 s" not in error.getvalue():
                time.sleep(0.001)
        else:
            assert reported.wait(60)
    assert lines[:1] == ([] if is_terminal else ["compiling: 0 s so far"])
    assert error.getvalue().endswith("\r") == is_terminal


def test_data_of_a_task_that_take_long_to_read_are_reported(monkeypatch: pytest.MonkeyPatch):
    lines, reported = [], threading.Event()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.001)

    def report(line: str) -> None:
        lines.append(line)
        reported.set()

    class Slow:
        name = "own"

        def load(self, name: str, *, tokenizer: None) -> SimpleNamespace:
            assert reported.wait(60)
            return SimpleNamespace(name=name, features=SimpleNamespace(targets=[]))

        def eval_splits(self) -> tuple[str, ...]:
            return ("dev",)

    load_task_data(cast(Any, Slow()), tokenizer=cast(Any, None), predict_test=False, report=report)
    assert lines[0] == "own: reading the data: 0 s so far"
