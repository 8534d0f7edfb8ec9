"""The interface of an output kind: its head, targets and loss, how outputs are read back, and its names in HuggingFace.

A new kind is one file with one subclass of `OutputKind`, and a line in `table.py`. Tasks, training, conversion and
prediction call the kind's methods. They never compare its name, which only configs and files contain.

Axes: B sequences, T positions, S instances per sequence, E examples per sequence (S / group), C labels.
The default methods fit kinds with one target and one output per example. Kinds with one per token override them.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.rows.packing import Placement
from bert_jax.training.cross_entropy import exact_cross_entropy

Targets = Int[Array, "B ..."] | Float[Array, "B ..."]
Gather = Callable[[Any], Any]  # arrays of a replica (a tree) -> those of all replicas, concatenated
Score = Callable[[Sequence[np.ndarray]], float]  # outputs, one per example -> the selection metric


@struct.dataclass
class Gold:
    """The targets of a batch, and where its examples are."""

    targets: Targets
    weights: Float[Array, "B E"]  # 1 for an example, 0 for an empty slot
    segment_ids: Int[Array, "B T"]  # the number of the instance, from 1; 0 is padding
    rows: Int[Array, " B"] | None = None  # the indices of the sequences in the global batch


@struct.dataclass
class Scores:
    """Loss, correctness and weight of each example or token. `correct` is None for regression.

    `counted` replaces `weights` in the accuracy if the loss weighs classes differently.
    """

    losses: Float[Array, "B ..."]
    correct: Float[Array, "B ..."] | None
    weights: Float[Array, "B ..."]
    counted: Float[Array, "B ..."] | None = None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A model that has learned nothing: its selection metric, and what it does ("always answering 'good'")."""

    score: float
    answer: str


@dataclasses.dataclass(frozen=True)
class OutputKind(abc.ABC):
    """An output kind with the sizes of one task."""

    num_labels: int = 0  # C; 0 if outputs have no label names
    group: int = 1  # instances per example
    class_weights: tuple[float, ...] = ()  # of each label in the loss; empty: all weigh the same

    name: ClassVar[str]
    head: ClassVar[str] = "classifier"  # the name of the head's parameters
    has_label_names: ClassVar[bool] = True  # each output of the head belongs to a named label
    target_dtype: ClassVar[Any] = np.int32
    huggingface_class: ClassVar[str]  # without the architecture's name: ForSequenceClassification
    problem_type: ClassVar[str] = ""  # in HuggingFace's config.json; distinguishes kinds that share a class
    pipeline_tag: ClassVar[str]  # on the model card
    can_imitate: ClassVar[bool] = False  # a teacher's outputs can be learned
    spans_batch: ClassVar[bool] = False  # the loss of an example depends on all examples of the batch
    per_token: ClassVar[bool] = False  # the classifier is applied to every token
    in_transformers_pipeline: ClassVar[bool] = True  # transformers 5 has no pipeline for questions and choices
    prediction_tasks: ClassVar[tuple[str, ...]]  # the predict command's --task values that accept this kind

    @abc.abstractmethod
    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with the kind's head (`model/task_heads.py`)."""

    @abc.abstractmethod
    def scores(self, outputs: Float[Array, "B ..."], gold: Gold) -> Scores:
        """Return loss, correctness and weight of the outputs that `by_example` returns."""

    def batch_scores(self, outputs: Float[Array, "B ..."], gold: Gold, *, gather: Gather) -> Scores:
        """Return the scores of a replica's outputs. `gather` returns the arrays of all replicas, if `spans_batch`."""
        del gather
        return self.scores(outputs, gold)

    def imitation_losses(
        self, outputs: Float[Array, "B E ..."], teacher: Float[Array, "B E ..."], *, gold: Gold, temperature: float
    ) -> Float[Array, "B E"]:
        """Return the divergence of the outputs from a teacher's, if `can_imitate`."""
        raise NotImplementedError(f"{self.name} does not learn from a teacher")

    @abc.abstractmethod
    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return a model that has learned nothing. `lengths` are the instances' numbers of tokens."""

    def by_example(self, outputs: Float[Array, "B ..."], *, examples: int) -> Float[Array, "B ..."]:
        """Return the head's outputs with one entry per example, E per sequence."""
        del examples
        return outputs

    def weights(self, gold: Gold) -> Float[Array, "B ..."]:
        """Return the weights of the items that the loss averages: examples."""
        return gold.weights

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return the targets, [B, E], of `rows` sequences of `length` positions that hold no example yet."""
        del length
        return np.zeros((rows, examples), self.target_dtype)

    def set_targets(self, targets: np.ndarray, values: Sequence[Any], *, placement: Placement) -> None:
        """Write the target of each example into the sequence and slot that packing chose for it."""
        targets[placement.rows, placement.slots] = np.asarray(values, self.target_dtype)

    def unpack(self, row: np.ndarray, *, slot: int, start: int, length: int) -> np.ndarray:
        """Return one example's output from a sequence's: example `slot`, whose tokens are `start : start + length`."""
        del start, length
        return row[slot].copy()

    @classmethod
    def label_fields(cls, labels: Sequence[str]) -> dict[str, Any]:
        """Return the fields of HuggingFace's config.json that describe the head."""
        fields: dict[str, Any] = {"problem_type": cls.problem_type} if cls.problem_type else {}
        return fields | id_fields(labels)

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return the predict command's answer for one example's float64 output, as a JSON object."""
        raise NotImplementedError(
            f"an answer of kind {cls.name} needs the text of its example: see prediction/spans.py"
        )


def id_fields(labels: Sequence[str]) -> dict[str, Any]:
    """Return HuggingFace's `id2label` and `label2id`, or an empty dict if there are no labels."""
    if not labels:
        return {}
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def existing_instances(gold: Gold, *, group: int) -> Bool[Array, "B E G"]:
    """Return which instances of each example exist: an example may have fewer than `group`."""
    rows, examples = gold.weights.shape
    numbers = jnp.arange(1, examples * group + 1)
    exists = (gold.segment_ids[:, None, :] == numbers[None, :, None]).any(-1)
    return exists.reshape(rows, examples, group)


def class_scores(outputs: Float[Array, "*n C"], gold: Gold, *, weights: Float[Array, "*n"]) -> Scores:
    """Return the scores of one class out of C. A negative target is read as class 0; its weight must be 0."""
    losses, correct = exact_cross_entropy(outputs, jnp.maximum(gold.targets, 0))
    return Scores(losses, correct.astype(jnp.float32), weights)


def unpack_tokens(row: np.ndarray, *, start: int, length: int) -> np.ndarray:
    """Return the outputs of one example's tokens from those of its sequence."""
    return row[start : start + length].copy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid of each logit, without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def rounded(values: np.ndarray) -> list[float]:
    """Return values with the 6 decimals that answers show."""
    return [round(float(value), 6) for value in values]
