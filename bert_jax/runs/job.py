"""What a session trains. Pre-training, fine-tuning and feature-based training differ in this and in nothing else."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bert_jax.runs.loop import Callback
from bert_jax.runs.recorder import Recorder
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput

StepFunction = Callable[[TrainState, Any], tuple[TrainState, StepOutput]]


class Job(abc.ABC):
    """State, batches and steps of one run from step 0 to `num_steps`; `run_config` is what its writers record."""

    num_steps: int
    run_config: Mapping[str, Any]
    remedy: str  # what to change where the loss is not finite
    saves_final_state: bool = True  # False: what the run was for is kept elsewhere, and its state is of no more use
    evaluates_initial_state: bool = False  # True where it comes from a model: what that knows before it is trained

    @abc.abstractmethod
    def abstract_state(self, metadata: Mapping[str, Any]) -> TrainState:
        """Return shapes, dtypes and shardings of the state to restore.

        Raises:
          UserError: if `metadata` says that the checkpoint belongs to other data or another vocabulary.
        """

    @abc.abstractmethod
    def initial_state(self) -> TrainState:
        """Return the state before step 0; asked for once, and not when a checkpoint is restored."""

    @abc.abstractmethod
    def batches(self, start: int) -> Iterator[Any]:
        """Yield the global batches of steps `start` to `num_steps - 1`; batch k is a function of (seed, k)."""

    @abc.abstractmethod
    def train_step(self, step: int) -> StepFunction:
        """Return the compiled step that takes the state of `step` to that of `step + 1`."""

    @abc.abstractmethod
    def compiles_at(self, step: int) -> bool:
        """Return whether `train_step(step)` is about to compile a step of another shape."""

    @abc.abstractmethod
    def learning_rate(self, step: int) -> float:
        """Return the rate of the update from `step` to `step + 1`."""

    @abc.abstractmethod
    def cost_of_step(self, step: int) -> Mapping[str, float]:
        """Return `sequences`, `tokens` (padding counted) and `flops` of the batch of `step`."""

    @abc.abstractmethod
    def evaluations(self, start: int, *, recorder: Recorder) -> Sequence[Callback]:
        """Return what the loop calls before it saves; opened, and checked, before the first step."""

    def metadata(self) -> dict[str, Any]:
        """Return what travels with every checkpoint, in JSON's types, beside the session's own."""
        return {}

    def take_up(self, metadata: Mapping[str, Any]) -> None:
        """Continue from what `metadata` returned when the restored checkpoint was saved."""
        del metadata
