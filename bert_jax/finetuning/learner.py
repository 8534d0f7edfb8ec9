"""What learns a task: a whole model that is fine-tuned, or a tagger on frozen features."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bert_jax.finetuning.settings import RunSettings, StepSettings
from bert_jax.tasks.interface import Split
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput


class Learner(abc.ABC):
    """One learner for all runs of a sweep, which share its compiled steps.

    Attributes:
      num_examples: of the train set.
      metadata: what the checkpoint of its best parameters must say to be a model again.
      is_kept: whether those parameters are kept when all is done.
      compiled_shapes: the shapes of the batches that steps were compiled for.
    """

    num_examples: int
    metadata: Mapping[str, Any]
    is_kept: bool

    def __init__(self) -> None:
        """Begin with nothing compiled."""
        self.compiled_shapes: set[tuple[Any, ...]] = set()

    @abc.abstractmethod
    def describe(self) -> str:
        """Return the line that is printed before the first run."""

    def prepare(self) -> None:  # noqa: B027  not every learner has something to prepare
        """Compute what all runs need; called once, if any run is still to be done."""

    @abc.abstractmethod
    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state."""

    @abc.abstractmethod
    def initial_state(self, settings: RunSettings) -> TrainState:
        """Return the state that a run begins with."""

    @abc.abstractmethod
    def batches(self, settings: RunSettings, *, start: int, end: int) -> Iterator[Any]:
        """Yield the global batches of steps `start` to `end - 1`."""

    @abc.abstractmethod
    def train_step(self, state: TrainState, rows: Any, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        """Return the next state and the metrics of the step."""

    @abc.abstractmethod
    def cost(self, rows: Any) -> Mapping[str, float]:
        """Return `tokens` (padding counted) and `flops` of a step on `rows`."""

    @abc.abstractmethod
    def outputs(self, params: Any, split: Split) -> list[np.ndarray]:
        """Return an output for each example of `split` (`tasks/interface.py`), the same on every host."""
