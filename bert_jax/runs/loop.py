"""The training loop.

Its order is fixed: log the pending step, evaluate, save, next batch, step, log the previous step. Callbacks run at a
step boundary whose metrics are written, so a checkpoint and metrics.jsonl always agree, and a killed run repeats
exactly what an undisturbed run does. The previous step's metrics are fetched after the next step is dispatched: the
device never waits for the host.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from bert_jax.runs.step_log import StepLog
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput


@runtime_checkable
class Callback(Protocol):
    """An action on the state every `every` steps and at the end; callbacks run in their given order."""

    every: int

    def __call__(self, step: int, *, state: TrainState) -> None:
        """Act on the state after `step` steps."""
        ...


def run_loop(
    state: TrainState,
    *,
    start: int,
    end: int,
    batches: Iterator[Any],
    train_step: Callable[[int], Callable[[TrainState, Any], tuple[TrainState, StepOutput]]],
    log: StepLog,
    callbacks: Sequence[Callback],
    should_stop: Callable[[], bool],
) -> tuple[TrainState, int]:
    """Train from step `start` to `end`, or until `should_stop` returns True; return state and step.

    Callbacks do not run at `start`: they ran before the checkpoint of that step was saved.
    """
    pending: tuple[int, StepOutput] | None = None
    step = start
    while True:
        stopping = should_stop()
        due = [f for f in callbacks if step != start and (step == end or step % f.every == 0)]
        if pending is not None and (due or stopping or step == end):
            log.finished_step(*pending)
            pending = None
        for callback in due:
            with log.outside_steps():
                callback(step, state=state)
        if stopping or step == end:
            return state, step
        with log.waiting_for_data():
            rows = next(batches)
        state, output = train_step(step)(state, rows)
        step += 1
        if pending is not None:
            log.finished_step(*pending)
        pending = (step, output)
