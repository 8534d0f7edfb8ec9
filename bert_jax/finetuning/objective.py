"""The loss and the outputs of a task on packed sequences. The task's kind (`bert_jax/kinds`) defines both."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Gold, OutputKind
from bert_jax.model.dropout import Dropout
from bert_jax.rows.layout import encoder_inputs, pooled_positions
from bert_jax.training.metrics import Mean, Means
from bert_jax.types import EncoderInputs, InstanceRows


@struct.dataclass
class PackedRows(InstanceRows):
    """Packed sequences as loaded: E examples per sequence, each of S / E instances."""

    weights: Float[Array, "B E"]  # 1 for an example, 0 for an empty slot
    targets: Int[Array, "B ..."] | Float[Array, "B ..."]  # in the form of the task's kind


@struct.dataclass
class TaskBatch:
    """The inputs of the model and the targets."""

    inputs: EncoderInputs
    pooled_positions: Int[Array, "B S"]
    rows: Int[Array, " B"]  # the indices of the sequences in the global batch, for dropout
    weights: Float[Array, "B E"]
    targets: Int[Array, "B ..."] | Float[Array, "B ..."]


@dataclasses.dataclass(frozen=True)
class TaskObjective:
    """The training objective of a task model."""

    model: ModelConfig
    kind: OutputKind

    def prepare(self, rows: PackedRows, *, key: Key[Array, ""]) -> TaskBatch:
        """Return the model's inputs. Nothing is random."""
        del key
        return TaskBatch(
            # A sequence with many choices may be longer than the position embeddings.
            inputs=encoder_inputs(rows, padding_at_zero=True),
            pooled_positions=pooled_positions(rows, direction=self.model.attention_direction),
            rows=jnp.arange(len(rows.input_ids), dtype=jnp.int32),
            weights=rows.weights,
            targets=rows.targets,
        )

    def weights(self, batch: TaskBatch) -> dict[str, Float[Array, ""]]:
        """Return the number of examples, or of scored tokens."""
        return {"examples": self.kind.weights(_gold(batch)).sum()}

    def loss(
        self,
        params: Any,
        *,
        batch: TaskBatch,
        weights: dict[str, Float[Array, ""]],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, ""], Means]:
        """Return this micro-batch's part of the mean loss over examples (tags: over tokens), and its metrics."""
        dropout = None if key is None else Dropout.create(key, rows=batch.rows)
        outputs = self.apply(params, batch, dropout=dropout)
        scores = self.kind.scores(outputs, _gold(batch))
        counted = scores.weights if scores.counted is None else scores.counted
        means = {} if scores.correct is None else {"accuracy": Mean.of(scores.correct, weights=counted)}
        empty = (batch.inputs.segment_ids == 0).astype(jnp.float32)
        means["padding_fraction"] = Mean.of(empty, weights=jnp.ones_like(empty))
        return (scores.losses * scores.weights).sum() / jnp.maximum(weights["examples"], 1), means

    def apply(self, params: Any, batch: TaskBatch, *, dropout: Dropout | None) -> Float[Array, "B ..."]:
        """Return the kind's outputs: one per example [B, E, ...] or per token [B, T, ...]."""
        model = self.kind.model(self.model)
        outputs = model.apply(
            {"params": params}, batch.inputs, pooled_positions=batch.pooled_positions, dropout=dropout
        )
        assert isinstance(outputs, jax.Array)
        return self.kind.by_example(outputs, examples=batch.weights.shape[1])

    def predict(self, params: Any, rows: PackedRows) -> Float[Array, "B ..."]:
        """Return the outputs of packed sequences, without dropout."""
        return self.apply(params, self.prepare(rows, key=jax.random.key(0)), dropout=None)


def _gold(batch: TaskBatch) -> Gold:
    return Gold(batch.targets, batch.weights, batch.inputs.segment_ids)
