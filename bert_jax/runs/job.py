"""The job that a session trains: the only difference between pre-training, fine-tuning and feature-based training."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bert_jax.runs.loop import Callback
from bert_jax.runs.recorder import Recorder
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput

StepFunction = Callable[[TrainState, Any], tuple[TrainState, StepOutput]]


class Job(abc.ABC):
    """State, batches and steps of one run, from step 0 to `num_steps`; writers record `run_config`."""

    num_steps: int
    run_config: Mapping[str, Any]
    remedy: str  # what to change if the loss is not finite
    saves_final_state: bool = True  # False: the result is saved elsewhere, and the final state is not needed
    evaluates_initial_state: bool = False  # True if it comes from a model: its metrics before training

    @abc.abstractmethod
    def abstract_state(self, metadata: Mapping[str, Any]) -> TrainState:
        """Return shapes, dtypes and shardings of the state to restore.

        Raises:
          UserError: if, by `metadata`, the checkpoint belongs to other data or another vocabulary.
        """

    def placed(self, state: TrainState) -> TrainState:
        """Return a restored state as the steps take it."""
        return state

    def stored(self, state: TrainState) -> TrainState:
        """Return a state of the steps as checkpoints have it."""
        return state

    @abc.abstractmethod
    def initial_state(self) -> TrainState:
        """Return the state before step 0; called once, and not if a checkpoint is restored."""

    @abc.abstractmethod
    def batches(self, start: int) -> Iterator[Any]:
        """Yield the global batches of steps `start` to `num_steps - 1`; batch k is a function of (seed, k)."""

    @abc.abstractmethod
    def train_step(self, step: int) -> StepFunction:
        """Return the compiled function that maps the state of `step` to that of `step + 1`."""

    @abc.abstractmethod
    def compiles_at(self, step: int) -> bool:
        """Return whether `train_step(step)` will compile a step of another shape."""

    @abc.abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the update from `step` to `step + 1`."""

    @abc.abstractmethod
    def cost_of_step(self, step: int) -> Mapping[str, float]:
        """Return `sequences`, `tokens` (including padding) and `flops` of the batch of `step`."""

    @abc.abstractmethod
    def evaluations(self, start: int, *, recorder: Recorder) -> Sequence[Callback]:
        """Return the evaluations that the loop calls before saving; opened and checked before the first step."""

    def metadata(self) -> dict[str, Any]:
        """Return the job's metadata for every checkpoint, in JSON types; the session adds its own."""
        return {}

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Resume from the metadata of the restored checkpoint."""
        del metadata
