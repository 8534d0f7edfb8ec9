"""The interface of what a run trains: a whole model (fine-tuning), or a tagger on frozen features."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bert_jax.finetuning.settings import RunSettings, StepSettings
from bert_jax.tasks.interface import Split
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput


class Learner(abc.ABC):
    """A learner. All runs of a sweep share it and its compiled steps.

    Attributes:
      num_examples: the size of the train set.
      metadata: the metadata of the checkpoint with the best parameters.
      saves_best: whether the best run's parameters remain in the workdir.
      compiled_shapes: the batch shapes for which steps have been compiled.
    """

    num_examples: int
    metadata: Mapping[str, Any]
    saves_best: bool

    def __init__(self) -> None:
        """Start with no compiled step."""
        self.compiled_shapes: set[tuple[Any, ...]] = set()

    @abc.abstractmethod
    def describe(self) -> str:
        """Return a description for the log, before the first run."""

    def prepare(self) -> None:  # noqa: B027  optional
        """Compute what all runs share. Called once, unless all runs are finished."""

    @abc.abstractmethod
    def abstract_state(self) -> TrainState:
        """Return shapes, dtypes and shardings of the state."""

    def placed(self, tree: Any) -> Any:
        """Return a restored state, or its parameters, as the steps take them."""
        return tree

    def stored(self, tree: Any) -> Any:
        """Return a state of a step, or its parameters, as checkpoints have them."""
        return tree

    @abc.abstractmethod
    def initial_state(self, settings: RunSettings) -> TrainState:
        """Return the initial state of a run."""

    @abc.abstractmethod
    def batches(self, settings: RunSettings, *, start: int, end: int) -> Iterator[Any]:
        """Yield the global batches of steps `start` to `end - 1`."""

    @abc.abstractmethod
    def train_step(self, state: TrainState, rows: Any, settings: StepSettings) -> tuple[TrainState, StepOutput]:
        """Return the next state and the metrics of the step."""

    @abc.abstractmethod
    def cost(self, rows: Any) -> Mapping[str, float]:
        """Return `tokens` (padding included) and `flops` of a training step on `rows`."""

    @abc.abstractmethod
    def outputs(self, params: Any, split: Split) -> list[np.ndarray]:
        """Return the output for each example of `split` (`tasks/interface.py`), the same on all hosts."""
