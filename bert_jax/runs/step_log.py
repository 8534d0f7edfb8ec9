"""Collect each step's metrics, write a line per interval, and stop a run whose loss is not finite.

A step with non-finite loss or gradients changes only the step number; up to the allowed number are skipped.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from bert_jax.errors import UserError
from bert_jax.runs.goodput import percentiles
from bert_jax.runs.recorder import Recorder
from bert_jax.training.metrics import MetricWindow
from bert_jax.training.policy import parameter_names
from bert_jax.training.steps import StepOutput

# Above this fraction of time waiting for data, the loader is too slow.
WAIT_WARNING = 0.1


@dataclasses.dataclass(frozen=True)
class StepFacts:
    """Facts about a step that are known in advance.

    Attributes:
      learning_rate: the learning rate of the update from `step` to `step + 1`.
      cost: `sequences`, `tokens` (including padding) and `flops` of that step's batch.
      peak_flops: peak FLOP/s of one device, None if unknown.
    """

    learning_rate: Callable[[int], float]
    cost: Callable[[int], Mapping[str, float]]
    peak_flops: float | None


@dataclasses.dataclass
class NonfiniteSteps:
    """Number of steps with non-finite loss or gradients, over all starts; `allowed` of them are skipped."""

    allowed: int = 0
    count: int = 0


class StepLog:
    """Log of finished steps, which are added in order."""

    def __init__(
        self,
        *,
        every: int,
        end: int,
        window: MetricWindow,
        recorder: Recorder,
        facts: StepFacts,
        nonfinite: NonfiniteSteps,
        last_good: Callable[[], int | None],
        remedy: str,
    ):
        """Write every `every` steps and at `end`; `last_good` returns the step of the newest checkpoint."""
        self._every, self._end = every, end
        self.window = window
        self._recorder = recorder
        self._facts = facts
        self._nonfinite = nonfinite
        self._last_good, self._remedy = last_good, remedy
        self._times: list[float] = []
        self._work = {"sequences": 0.0, "tokens": 0.0, "flops": 0.0, "steps": 0.0}
        self._waited = self._excluded = 0.0
        self._interval_start = self._last_finished = time.perf_counter()
        self._elsewhere = 0.0  # seconds outside steps since the last finished one
        self._compiling = False

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time the wait for a batch."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._waited += seconds
        self._elsewhere += seconds
        self._recorder.goodput.add("data_wait", seconds)

    @contextlib.contextmanager
    def outside_steps(self) -> Iterator[None]:
        """Exclude the time of the body (evaluation, saving) from step times."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._excluded += seconds
        self._elsewhere += seconds

    def expect_compilation(self) -> None:
        """Count the next finished step as compiling: a step of another shape is about to be dispatched."""
        self._compiling = True

    def finished_step(self, step: int, output: StepOutput) -> None:
        """Add the metrics of the update that produced the state of `step`; wait for it.

        Raises:
          UserError: if more steps than allowed have non-finite loss or gradients.
        """
        if bool(output.finite):
            self.window.add(output.means)
        else:
            self._nonfinite.count += 1
            if self._nonfinite.count > self._nonfinite.allowed:
                self._stop(step, output)
            allowed = f"{self._nonfinite.count} of at most {self._nonfinite.allowed}"
            self._recorder.say(f"step {step}  loss or gradients not finite: update skipped ({allowed})")
        self._time_step(step)
        for name, amount in {**self._facts.cost(step - 1), "steps": 1}.items():
            self._work[name] += amount
        if self._compiling:
            self._compiling = False
            self._restart_clock()
        self._recorder.progress.advance(step)
        if step % self._every == 0 or step == self._end:
            self._write(step)
        self._last_finished, self._elsewhere = time.perf_counter(), 0.0

    def _time_step(self, step: int) -> None:
        seconds = max(time.perf_counter() - self._last_finished - self._elsewhere, 0.0)
        if not self._compiling:
            self._times.append(seconds)
        self._recorder.goodput.finished_step(step, seconds=seconds, compiled=self._compiling)

    def _write(self, step: int) -> None:
        means = self.window.means()
        padding = means.pop("padding_fraction", 0.0)
        instances = means.pop("instances_per_row", None)
        metrics: dict[str, float | None] = {f"train/{name}": value for name, value in means.items()}
        metrics["train/learning_rate"] = self._facts.learning_rate(step - 1)
        if self._nonfinite.allowed:
            metrics["train/nonfinite_steps"] = self._nonfinite.count
        metrics |= self._performance()
        metrics["perf/padding_fraction"] = padding
        if instances is not None:  # packed sequences
            rate = metrics["perf/sequences_per_second"]
            metrics["perf/instances_per_row"] = instances
            metrics["perf/instances_per_second"] = None if rate is None else instances * rate
        metrics |= self._recorder.goodput.metrics()
        self._recorder.goodput.write()
        self._recorder.write(step, metrics)
        waited = metrics["perf/data_wait_fraction"] or 0.0
        self._recorder.progress.line(step, metrics=metrics)
        if waited > WAIT_WARNING:
            self._recorder.say(
                f"training waits for data {waited:.0%} of the time: the loader is the bottleneck; put the data set "
                "on a local disk, or use fewer chips per host"
            )
        self.window.clear()
        self._restart_clock()

    def _performance(self) -> dict[str, float | None]:
        peak = self._facts.peak_flops
        elapsed = max(time.perf_counter() - self._interval_start - self._excluded, 1e-9)
        steps = self._work["steps"]
        if not steps:
            return dict.fromkeys(
                ("perf/step_seconds", "perf/sequences_per_second", "perf/tokens_per_second", "perf/mfu"), None
            ) | {"perf/data_wait_fraction": 0.0}
        step_times = percentiles(self._times) if self._times else {}
        return {
            "perf/step_seconds": elapsed / steps,
            **{f"perf/step_seconds_p{number}": seconds for number, seconds in step_times.items()},
            "perf/sequences_per_second": self._work["sequences"] / elapsed,
            "perf/tokens_per_second": self._work["tokens"] / elapsed,
            "perf/mfu": self._work["flops"] / elapsed / peak / jax.device_count() if peak else None,
            "perf/data_wait_fraction": min(self._waited / elapsed, 1.0),
        }

    def _restart_clock(self) -> None:
        self._work = dict.fromkeys(self._work, 0.0)
        self._times.clear()
        self._waited = self._excluded = 0.0
        self._interval_start = time.perf_counter()

    def _stop(self, step: int, output: StepOutput) -> None:
        flags: Any = jax.device_get(output.bad_parameters)
        bad = [name for name, flag in zip(parameter_names(flags), jax.tree.leaves(flags), strict=True) if flag]
        loss = float(output.means["loss"].total)
        good = self._last_good()
        checkpoint = f"the last checkpoint is of step {good}" if good is not None else "there is no checkpoint yet"
        after = f", after {self._nonfinite.allowed} that config.train.max_nonfinite_steps allows"
        allowed = after if self._nonfinite.allowed else ""
        raise UserError(
            f"loss or gradients are not finite at step {step}{allowed} (loss {loss}, batch number {step - 1}; first "
            f"bad parameter group: {bad[0] if bad else 'none, only the loss'}; bad groups: {len(bad)}); the update was "
            f"not applied and {checkpoint}: {self._remedy}"
        )
