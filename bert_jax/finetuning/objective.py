"""Compute the loss of each kind of task on packed rows, and its outputs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from bert_jax.config import ModelConfig
from bert_jax.model.dropout import Dropout
from bert_jax.model.task_heads import make_task_model
from bert_jax.rows.layout import cls_positions, encoder_inputs
from bert_jax.training.metrics import Mean, Means
from bert_jax.types import EncoderInputs, InstanceRows

_MASKED = -1e30  # as in attention.py: finite, so that an empty slot gives a number and its weight 0 removes it


@struct.dataclass
class PackedRows(InstanceRows):
    """Packed instances as loaded; E examples a row, each of S / E instances.

    `targets` by kind: labels [B, E] (int, or float for regression), tags [B, T] (-1: not scored), span [B, E, 2]
    (positions in the row). `weights` is 1 where an example stands.
    """

    weights: Float[Array, "B E"]
    targets: Int[Array, "B ..."] | Float[Array, "B ..."]


@struct.dataclass
class TaskBatch:
    """Hold what the model reads; `rows` numbers the rows of the global batch, for dropout."""

    inputs: EncoderInputs
    cls_positions: Int[Array, "B S"]
    rows: Int[Array, " B"]
    weights: Float[Array, "B E"]
    targets: Int[Array, "B ..."] | Float[Array, "B ..."]


@dataclasses.dataclass(frozen=True)
class TaskObjective:
    """Train a task model; `group` instances make an example."""

    model: ModelConfig
    kind: str
    num_labels: int
    group: int = 1

    def prepare(self, rows: PackedRows, *, key: Key[Array, ""]) -> TaskBatch:
        """Unfold the rows; nothing is drawn."""
        del key
        return TaskBatch(
            inputs=encoder_inputs(rows, padding_at_zero=True),  # a row of many choices may be longer than the table
            cls_positions=cls_positions(rows),
            rows=jnp.arange(len(rows.input_ids), dtype=jnp.int32),
            weights=rows.weights,
            targets=rows.targets,
        )

    def weights(self, batch: TaskBatch) -> dict[str, Float[Array, ""]]:
        """Return the number of examples, or of scored tokens."""
        counted = (batch.targets >= 0).astype(jnp.float32) if self.kind == "tags" else batch.weights
        return {"examples": counted.sum()}

    def loss(
        self,
        params: Any,
        *,
        batch: TaskBatch,
        weights: dict[str, Float[Array, ""]],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, ""], Means]:
        """Return this part's share of the mean loss over the examples (tags: over the tokens), and its figures."""
        dropout = None if key is None else Dropout.create(key, rows=batch.rows)
        outputs = self.apply(params, batch, dropout=dropout)
        losses, right, counted = self._losses(outputs, batch)
        means = {} if self.kind == "regression" else {"accuracy": Mean.of(right, weights=counted)}
        empty = (batch.inputs.segment_ids == 0).astype(jnp.float32)
        means["padding_fraction"] = Mean.of(empty, weights=jnp.ones_like(empty))
        return (losses * counted).sum() / jnp.maximum(weights["examples"], 1), means

    def apply(self, params: Any, batch: TaskBatch, *, dropout: Dropout | None) -> Float[Array, "B ..."]:
        """Return the head's outputs: [B, E, C] (choices as C), or [B, T, C] for tags and span."""
        model = make_task_model(self.kind, config=self.model, num_labels=self.num_labels)
        outputs = model.apply({"params": params}, batch.inputs, cls_positions=batch.cls_positions, dropout=dropout)
        assert isinstance(outputs, jax.Array)
        if self.kind == "choice":
            return outputs.reshape(*batch.weights.shape, self.group)
        return outputs

    def predict(self, params: Any, rows: PackedRows) -> Float[Array, "B ..."]:
        """Return the outputs of rows as loaded, without dropout."""
        return self.apply(params, self.prepare(rows, key=jax.random.key(0)), dropout=None)

    def _losses(
        self, outputs: Float[Array, "B ..."], batch: TaskBatch
    ) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."], Float[Array, "B ..."]]:
        """Return loss, whether it is right, and weight, of each example or token."""
        if self.kind == "regression":
            error = jnp.square(outputs[..., 0] - batch.targets)
            return error, jnp.zeros_like(error), batch.weights
        if self.kind == "span":
            return self._span_losses(outputs, batch)
        weights = (batch.targets >= 0).astype(jnp.float32) if self.kind == "tags" else batch.weights
        labels = jnp.maximum(batch.targets, 0)
        right = (jnp.argmax(outputs, -1) == labels).astype(jnp.float32)
        return _cross_entropy(outputs, labels=labels), right, weights

    def _span_losses(
        self, outputs: Float[Array, "B T 2"], batch: TaskBatch
    ) -> tuple[Float[Array, "B E"], Float[Array, "B E"], Float[Array, "B E"]]:
        """Return the mean cross-entropy of start and end, each over the positions of the example's own instance."""
        numbers = jnp.arange(1, batch.weights.shape[1] + 1)
        own: Bool[Array, "B E T"] = batch.inputs.segment_ids[:, None, :] == numbers[None, :, None]
        logits = jnp.where(own[..., None], outputs[:, None], _MASKED).swapaxes(-1, -2)  # [B, E, 2, T]
        losses = _cross_entropy(logits, labels=batch.targets).mean(-1)
        right = (jnp.argmax(logits, -1) == batch.targets).all(-1).astype(jnp.float32)
        return losses, right, batch.weights


def _cross_entropy(logits: Float[Array, "*n C"], *, labels: Int[Array, "*n"]) -> Float[Array, "*n"]:
    picked = (jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * logits).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked
