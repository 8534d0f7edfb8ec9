"""Wall time is told apart over all starts, and what a kill cost is counted."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from bert_jax.runs.goodput import FILE, KINDS, Goodput, percentiles


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return a clock that stands still until it is set."""
    now = {"now": 1000.0}
    monkeypatch.setattr(time, "time", lambda: now["now"])
    return now


def share(goodput: Goodput) -> float:
    """Return the share of useful steps."""
    value = goodput.metrics()["perf/goodput"]
    assert value is not None
    return value


def test_every_second_is_told_apart(tmp_path: Path, clock: dict[str, float]) -> None:
    goodput = Goodput(tmp_path, started_at=990.0, start=0)  # 10 s of start-up
    goodput.finished_step(1, seconds=20.0, compiled=True)
    goodput.finished_step(2, seconds=10.0, compiled=True)  # a phase of another length begins
    for step in range(3, 13):
        goodput.finished_step(step, seconds=5.0, compiled=False)
    goodput.add("checkpoint", 4.0)
    goodput.add("data_wait", 3.0)
    clock["now"] = 1090.0
    metrics = goodput.metrics()
    seconds = {kind: metrics[f"perf/{kind}_seconds"] for kind in KINDS}
    expected = {"startup": 10, "compile": 30, "useful": 50, "checkpoint": 4, "data_wait": 3, "other": 3}
    assert seconds == pytest.approx({**dict.fromkeys(KINDS, 0.0), **expected})
    assert share(goodput) == pytest.approx(0.5)


def test_work_behind_the_checkpoint_of_a_killed_start_is_lost_and_the_gap_was_down(
    tmp_path: Path, clock: dict[str, float]
) -> None:
    first = Goodput(tmp_path, started_at=1000.0, start=0)
    for step in range(1, 12):
        first.finished_step(step, seconds=10.0, compiled=step == 1)
    clock["now"] = 1110.0
    first.write()  # killed behind step 11; the last checkpoint was of step 8
    clock["now"] = 1130.0
    second = Goodput(tmp_path, started_at=1120.0, start=8)
    metrics = second.metrics()
    assert metrics["perf/lost_seconds"] == pytest.approx(30 * 100 / 110)  # 3 steps of 11, the first of which compiled
    assert metrics["perf/useful_seconds"] == pytest.approx(100 - 30 * 100 / 110)
    assert metrics["perf/down_seconds"] == pytest.approx(10)
    assert metrics["perf/startup_seconds"] == pytest.approx(10)
    assert (second.starts, second.lost_steps, second.most_lost_steps) == (2, 3, 3)
    assert sum(metrics[f"perf/{kind}_seconds"] or 0 for kind in KINDS) == pytest.approx(130)
    second.finished_step(9, seconds=1.0, compiled=True)
    second.write()
    third = Goodput(tmp_path, started_at=1140.0, start=8)
    assert (third.starts, third.lost_steps, third.most_lost_steps) == (3, 4, 3)


def test_a_stop_that_saved_loses_nothing(tmp_path: Path, clock: dict[str, float]) -> None:
    first = Goodput(tmp_path, started_at=1000.0, start=0)
    for step in range(1, 6):
        first.finished_step(step, seconds=10.0, compiled=step == 1)
    clock["now"] = 1050.0
    first.write()
    second = Goodput(tmp_path, started_at=1050.0, start=5)
    assert second.lost_steps == 0
    assert second.metrics()["perf/lost_seconds"] == 0.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": {}}'])
def test_figures_that_cannot_be_read_are_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    goodput = Goodput(tmp_path, started_at=time.time(), start=4)
    assert goodput.starts == 1
    goodput.write()
    assert json.loads((tmp_path / FILE).read_text())["starts"] == 1


def test_the_closing_line_has_goodput_lost_work_and_step_times(tmp_path: Path, clock: dict[str, float]) -> None:
    first = Goodput(tmp_path, started_at=1000.0, start=0)
    for step in range(1, 6):
        first.finished_step(step, seconds=10.0, compiled=step == 1)
    clock["now"] = 1050.0
    first.write()
    second = Goodput(tmp_path, started_at=1060.0, start=3)
    for step in range(4, 9):
        second.finished_step(step, seconds=float(step), compiled=step == 4)
    clock["now"] = 1100.0
    line = second.describe()
    assert "\n" not in line
    for part in ("of 1 min 40 s in 2 starts", "lost work", "(2 steps, at most 2 at once)", "down 10.0%", "p50 6.5 s"):
        assert part in line
    assert (
        second.describe(briefly=True)
        == f"time: 1 min 40 s, {second.metrics()['perf/goodput']:.0%} of it training steps"
    )


def test_a_host_without_a_file_keeps_nothing(tmp_path: Path) -> None:
    goodput = Goodput(None, started_at=time.time(), start=0)
    goodput.finished_step(1, seconds=1.0, compiled=True)
    goodput.write()
    assert not any(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    goodput = Goodput(tmp_path / "gone", started_at=time.time(), start=0)
    with pytest.raises(UserError, match=r"goodput\.json cannot be written"):
        goodput.write()


@pytest.mark.parametrize("times", [[1.0], [3.0, 1.0, 2.0]])
def test_percentiles_are_of_the_times_given(times: Any) -> None:
    found = percentiles(times)
    assert list(found) == [50, 90, 99]
    assert min(times) <= found[50] <= found[90] <= found[99] <= max(times)
