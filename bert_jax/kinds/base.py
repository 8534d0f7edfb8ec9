"""What every kind of output is: a head, targets, a loss, how outputs are read back, and the names HuggingFace gives it.

A new kind is one file with one subclass of `OutputKind`, and a line in `table.py`. Tasks, training, conversion and
prediction ask the kind. Its name is written to files and read from configs, and compared nowhere else.

Axis letters: B rows, T positions, S instances a row, E examples a row (S / group), C labels. The defaults below are
those of kinds with one target and one output per example; kinds with one per token override them.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.rows.packing import Placement
from bert_jax.training.cross_entropy import exact_cross_entropy

Targets = Int[Array, "B ..."] | Float[Array, "B ..."]
Score = Callable[[Sequence[np.ndarray]], float]  # the selection metric of outputs, one per example


@struct.dataclass
class Gold:
    """What outputs are scored against: targets, weights of 1 where an example is, numbers of instances from 1."""

    targets: Targets
    weights: Float[Array, "B E"]
    segment_ids: Int[Array, "B T"]


@struct.dataclass
class Scores:
    """Loss, correctness and weight of each example or token; `right` is None where outputs are not right or wrong."""

    losses: Float[Array, "B ..."]
    right: Float[Array, "B ..."] | None
    weights: Float[Array, "B ..."]


@dataclasses.dataclass(frozen=True)
class OutputKind(abc.ABC):
    """A kind of output with the sizes of one task: C labels (0 without names), `group` instances per example."""

    num_labels: int = 0
    group: int = 1

    name: ClassVar[str]
    head: ClassVar[str] = "classifier"  # the parameters on top of the encoder
    has_label_names: ClassVar[bool] = True  # a head's outputs belong to named labels
    target_dtype: ClassVar[Any] = np.int32
    huggingface_class: ClassVar[str]  # without the architecture's name: ForSequenceClassification
    problem_type: ClassVar[str] = ""  # in HuggingFace's config.json; tells kinds of one class apart
    pipeline_tag: ClassVar[str]  # on a model card
    in_transformers_pipeline: ClassVar[bool] = True  # version 5 has none for questions and choices
    prediction_tasks: ClassVar[tuple[str, ...]]  # of the predict command

    @abc.abstractmethod
    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with the kind's head (`model/task_heads.py`)."""

    @abc.abstractmethod
    def scores(self, outputs: Float[Array, "B ..."], gold: Gold) -> Scores:
        """Return loss, correctness and weight of what `by_example` gave."""

    @abc.abstractmethod
    def baseline(self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any]) -> float:
        """Return the metric of a model that has learned nothing; `lengths` are the tokens of each instance."""

    def by_example(self, outputs: Float[Array, "B ..."], *, examples: int) -> Float[Array, "B ..."]:
        """Return the head's outputs with an entry per example, E of them a row."""
        del examples
        return outputs

    def weights(self, gold: Gold) -> Float[Array, "B ..."]:
        """Return the weights of what the loss is a mean of: examples."""
        return gold.weights

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return the targets of rows of `length` positions without examples: [B, E]."""
        del length
        return np.zeros((rows, examples), self.target_dtype)

    def set_targets(self, targets: np.ndarray, values: Sequence[Any], *, placement: Placement) -> None:
        """Write the target of each example where it is placed."""
        targets[placement.rows, placement.slots] = np.asarray(values, self.target_dtype)

    def unpack(self, row: np.ndarray, *, slot: int, start: int, length: int) -> np.ndarray:
        """Return one example's output out of a row's: example number `slot`, `length` tokens from `start` on."""
        del start, length
        return row[slot].copy()

    @classmethod
    def label_fields(cls, labels: Sequence[str]) -> dict[str, Any]:
        """Return what HuggingFace's config.json says of the head."""
        fields: dict[str, Any] = {"problem_type": cls.problem_type} if cls.problem_type else {}
        return fields | id_fields(labels)

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return what the predict command answers for one example's float64 output, as a JSON object."""
        raise NotImplementedError(f"outputs of kind {cls.name} are answered with the text that they belong to")


def id_fields(labels: Sequence[str]) -> dict[str, Any]:
    """Return HuggingFace's `id2label` and `label2id`; nothing without labels."""
    if not labels:
        return {}
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def class_scores(outputs: Float[Array, "*n C"], gold: Gold, *, weights: Float[Array, "*n"]) -> Scores:
    """Return the scores of one class out of C; a negative target, which must weigh 0, counts as class 0."""
    losses, right = exact_cross_entropy(outputs, jnp.maximum(gold.targets, 0))
    return Scores(losses, right.astype(jnp.float32), weights)


def unpack_tokens(row: np.ndarray, *, start: int, length: int) -> np.ndarray:
    """Return the outputs of an example's tokens out of a row's."""
    return row[start : start + length].copy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, in float64."""
    shares = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def rounded(values: np.ndarray) -> list[float]:
    """Return values as answers write them, with 6 decimals."""
    return [round(float(value), 6) for value in values]
