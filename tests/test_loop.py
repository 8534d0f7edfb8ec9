"""The loop's order is law; the step log writes the contract's figures and stops what is not finite."""

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from bert_jax.errors import UserError
from bert_jax.progress import duration
from bert_jax.runs.goodput import KINDS, Goodput
from bert_jax.runs.loop import run_loop
from bert_jax.runs.progress import Progress
from bert_jax.runs.recorder import Recorder
from bert_jax.runs.step_log import NonfiniteSteps, StepFacts, StepLog
from bert_jax.runs.writers import JsonLinesWriter
from bert_jax.training.metrics import Mean, MetricWindow
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput


def output(loss: float, *, finite: bool = True, weight: float = 1.0) -> StepOutput:
    """Return the figures of one step."""
    means = {
        "loss": Mean(jnp.float32(loss * weight), jnp.float32(weight)),
        "padding_fraction": Mean(jnp.float32(3.0), jnp.float32(12.0)),
    }
    return StepOutput(
        means=means,
        finite=jnp.asarray(finite),
        bad_parameters={"encoder": {"kernel": jnp.asarray(False)}, "pooler": {"kernel": jnp.asarray(not finite)}},
    )


def state(step: int) -> TrainState:
    """Return a state that is nothing but its step."""
    return TrainState(step=jnp.int32(step), params={}, opt_state={})


class LoggedEvents(StepLog):
    """Write down what the loop does instead of doing it."""

    def __init__(self, events: list[str]):
        self.events = events

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        yield
        self.events.append("data")

    @contextlib.contextmanager
    def outside_steps(self) -> Iterator[None]:
        yield

    def finished_step(self, step: int, output: StepOutput) -> None:
        self.events.append(f"log {step}")


class Callback:
    """Write down when it is called, and with which state."""

    def __init__(self, name: str, every: int, events: list[str]):
        self.name, self.every, self.events = name, every, events

    def __call__(self, step: int, *, state: TrainState) -> None:
        assert int(state.step) == step
        self.events.append(f"{self.name} {step}")


def play(
    *, start: int, end: int, callbacks: list[tuple[str, int]], stop: Callable[[list[str]], bool] = lambda events: False
) -> tuple[list[str], int]:
    """Return what a loop did, and the step it ended at."""
    events: list[str] = []

    def train_step(step: int) -> Callable[[TrainState, Any], tuple[TrainState, StepOutput]]:
        def take(before: TrainState, rows: Any) -> tuple[TrainState, StepOutput]:
            assert rows == step == int(before.step)
            events.append(f"step {step + 1}")
            return state(step + 1), output(1.0)

        return take

    last, step = run_loop(
        state(start),
        start=start,
        end=end,
        batches=iter(range(start, end)),
        train_step=train_step,
        log=LoggedEvents(events),
        callbacks=[Callback(name, every, events) for name, every in callbacks],
        should_stop=lambda: stop(events),
    )
    assert int(last.step) == step
    return events, step


def test_the_order_of_the_loop_is_law() -> None:
    events, step = play(start=0, end=4, callbacks=[("evaluate", 2), ("save", 2)])
    assert step == 4
    assert events == [
        *("data", "step 1"),
        *("data", "step 2", "log 1"),
        *("log 2", "evaluate 2", "save 2", "data", "step 3"),
        *("data", "step 4", "log 3"),
        *("log 4", "evaluate 4", "save 4"),
    ]


def test_figures_of_a_step_are_fetched_after_the_next_is_dispatched() -> None:
    events, _ = play(start=0, end=6, callbacks=[])
    for step in range(1, 5):
        assert events.index(f"log {step}") > events.index(f"step {step + 1}")


def test_every_feature_runs_at_the_end_whatever_its_interval() -> None:
    events, _ = play(start=0, end=5, callbacks=[("evaluate", 3), ("save", 100)])
    assert [event for event in events if event.split()[0] in ("evaluate", "save")] == [
        *("evaluate 3", "evaluate 5", "save 5")
    ]


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_resumed_loop_does_the_rest_of_what_the_undisturbed_one_does(killed_at: int) -> None:
    features = [("evaluate", 3), ("save", 2)]
    whole, _ = play(start=0, end=8, callbacks=features)
    resumed, _ = play(start=killed_at, end=8, callbacks=features)

    def of(events: list[str], kind: str) -> list[str]:
        return [event for event in events if event.startswith(kind)]

    for kind in ("step", "log", "evaluate", "save"):
        behind = [event for event in of(whole, kind) if int(event.split()[1]) > killed_at]
        assert of(resumed, kind) == behind


def test_a_request_to_stop_ends_at_a_boundary_with_everything_logged() -> None:
    events, step = play(start=0, end=100, callbacks=[("save", 50)], stop=lambda events: events.count("data") == 3)
    assert step == 3
    assert events[-1] == "log 3"
    assert "save 3" not in events  # the run saves behind the loop


def test_a_request_to_stop_before_the_first_step_takes_none() -> None:
    assert play(start=7, end=9, callbacks=[("save", 7)], stop=lambda events: True) == ([], 7)


@contextlib.contextmanager
def opened_log(
    path: Path, *, every: int = 2, end: int = 100, good: int | None = None, nonfinite: NonfiniteSteps | None = None
) -> Iterator[StepLog]:
    """Open a real step log that writes to `path`."""
    nonfinite = nonfinite or NonfiniteSteps()
    writer = JsonLinesWriter(path)
    log = StepLog(
        every=every,
        end=end,
        window=MetricWindow(),
        recorder=Recorder([writer], Progress(start=0, end=end), Goodput(None, started_at=time.time(), start=0)),
        facts=StepFacts(
            learning_rate=lambda step: step / 1000,
            cost=lambda step: {"sequences": 16, "tokens": 512, "flops": 1e6},
            peak_flops=1e12,
        ),
        nonfinite=nonfinite,
        last_good=lambda: good,
        remedy="lower config.optimizer.learning_rate",
    )
    log.expect_compilation()
    yield log
    writer.close()


def test_an_interval_is_one_line_of_the_contracts_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [(1.0, 1.0), (4.0, 2.0), (2.0, 1.0), (2.0, 1.0), (9.0, 1.0)]
    with opened_log(tmp_path / "metrics.jsonl", every=2, end=5) as log:
        for step, (loss, weight) in enumerate(steps, start=1):
            log.finished_step(step, output(loss, weight=weight))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert [line["train/loss"] for line in lines] == [3.0, 2.0, 9.0]
    assert [line["train/learning_rate"] for line in lines] == [0.001, 0.003, 0.004]  # of the update that made the step
    assert {name for name in lines[1] if name.startswith("perf/")} == {
        "perf/step_seconds",
        *("perf/step_seconds_p50", "perf/step_seconds_p90", "perf/step_seconds_p99"),
        "perf/sequences_per_second",
        "perf/tokens_per_second",
        "perf/mfu",
        "perf/data_wait_fraction",
        "perf/padding_fraction",
        "perf/goodput",
        *(f"perf/{kind}_seconds" for kind in KINDS),
    }
    assert lines[1]["perf/padding_fraction"] == 0.25
    assert lines[1]["perf/tokens_per_second"] == pytest.approx(32 * lines[1]["perf/sequences_per_second"])
    assert lines[1]["perf/step_seconds"] == pytest.approx(16 / lines[1]["perf/sequences_per_second"])
    assert "step 4/5  loss 2.000" in capsys.readouterr().out


@pytest.mark.parametrize(("good", "words"), [(40, "the last checkpoint is of step 40"), (None, "no checkpoint")])
def test_a_loss_that_is_not_finite_stops_with_step_batch_and_parameter(
    tmp_path: Path, good: int | None, words: str
) -> None:
    with opened_log(tmp_path / "metrics.jsonl", good=good) as log, pytest.raises(UserError) as caught:
        log.finished_step(44, output(float("nan"), finite=False))
    text = str(caught.value)
    for part in ("step 44", "batch number 43", "pooler/kernel", "bad groups: 1", words, "learning_rate"):
        assert part in text
    assert "encoder/kernel" not in text
    assert "\n" not in text


def test_as_many_steps_that_are_not_finite_as_allowed_are_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = NonfiniteSteps(allowed=3, count=1)
    with opened_log(tmp_path / "metrics.jsonl", nonfinite=steps) as log:
        log.finished_step(1, output(2.0))
        log.finished_step(2, output(float("nan"), finite=False))
        log.finished_step(3, output(float("nan"), finite=False))
        log.finished_step(4, output(4.0))
        assert steps.count == 3
        with pytest.raises(
            UserError, match=r"not finite at step 5, after 3 that config\.train\.max_nonfinite_steps allow"
        ):
            log.finished_step(5, output(float("nan"), finite=False))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/loss"] for line in lines] == [2.0, 4.0]  # nothing of what was passed over
    assert [line["train/nonfinite_steps"] for line in lines] == [2, 3]
    assert "step 3  loss or gradients not finite: update skipped (3 of at most 3)" in capsys.readouterr().out


def test_waiting_for_data_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"now": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["now"])
    with opened_log(tmp_path / "metrics.jsonl", every=1) as log:
        log.finished_step(1, output(1.0))  # the compiler's step counts for nothing
        assert "waits for data" not in capsys.readouterr().out
        with log.waiting_for_data():
            now["now"] += 1.0
        now["now"] += 1.0
        log.finished_step(2, output(1.0))
        assert "training waits for data" in capsys.readouterr().out
        with log.outside_steps():
            now["now"] += 5.0
        now["now"] += 1.0
        log.finished_step(3, output(1.0))
        assert "waits for data" not in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["perf/data_wait_fraction"] == 0.5
    assert lines[2]["perf/data_wait_fraction"] == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (18_600, "5 h 10 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_are_said_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_terminal_gets_a_bar_with_figures_and_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    progress = Progress(start=2, end=10)
    progress.advance(3)
    progress.line(3, metrics={"train/loss": 1.25})
    progress.say("step 3  held-out")
    progress.advance(10)
    progress.close()
    shown = terminal.getvalue()
    assert "3/10" in shown
    assert "10/10" in shown
    assert "loss 1.250" in shown
    assert "step 3  held-out\n" in shown


def test_other_hosts_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(start=0, end=10, enabled=False)
    progress.advance(1)
    progress.line(1, metrics={"train/loss": 1.0})
    progress.say("anything")
    progress.close()
    assert capsys.readouterr().out == ""
