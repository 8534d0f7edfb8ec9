"""The loss and the outputs of a task on packed sequences. The task's kind (`bert_jax/kinds`) defines both."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Gather, Gold, OutputKind, Scores
from bert_jax.model.dropout import Dropout
from bert_jax.rows.layout import encoder_inputs, pooled_positions
from bert_jax.training.metrics import Mean, Means
from bert_jax.types import EncoderInputs, InstanceRows


@struct.dataclass
class PackedRows(InstanceRows):
    """Packed sequences as loaded: E examples per sequence, each of S / E instances."""

    weights: Float[Array, "B E"]  # 1 for an example, 0 for an empty slot
    targets: Int[Array, "B ..."] | Float[Array, "B ..."]  # in the form of the task's kind
    teacher: Float[Array, "B E ..."] | None = None  # the outputs of a teacher


@struct.dataclass
class CachedScores:
    """The scores of a micro-batch within the whole batch, and the gradient of the loss for its outputs (GradCache)."""

    scores: Scores
    gradients: Float[Array, "B ..."]


@struct.dataclass
class TaskBatch:
    """The inputs of the model and the targets."""

    inputs: EncoderInputs
    pooled_positions: Int[Array, "B S"]
    rows: Int[Array, " B"]  # the indices of the sequences in the global batch, for dropout
    weights: Float[Array, "B E"]
    targets: Int[Array, "B ..."] | Float[Array, "B ..."]
    teacher: Float[Array, "B E ..."] | None = None
    cached: CachedScores | None = None  # if the loss spans the batch, and this is one of several micro-batches


def _identity(tree: Any) -> Any:
    return tree


@dataclasses.dataclass(frozen=True)
class TaskObjective:
    """The training objective of a task model. `gather` returns the arrays of all replicas.

    With outputs of a teacher in the batch, the fraction `teacher_weight` of the loss is the divergence from them.
    """

    model: ModelConfig
    kind: OutputKind
    gather: Gather = _identity
    teacher_weight: float = 0.0
    teacher_temperature: float = 1.0

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
            teacher=rows.teacher,
        )

    def weights(self, batch: TaskBatch) -> dict[str, Float[Array, ""]]:
        """Return the number of examples, or of scored tokens."""
        return {"examples": self.kind.weights(_gold(batch)).sum()}

    def with_whole_batch(
        self, params: Any, *, parts: TaskBatch, weights: dict[str, Float[Array, ""]], key: Key[Array, ""] | None
    ) -> TaskBatch:
        """Return stacked micro-batches with what each must know of the others, if the loss spans the batch.

        GradCache (Gao et al. 2021): the outputs of all micro-batches are computed first, without residuals. They give
        the loss and its gradient for every output; `loss` then computes a micro-batch again and continues from there.
        """
        if not self.kind.spans_batch:
            return parts
        stacked = jax.lax.map(lambda part: self.apply(params, part, dropout=_dropout(part, key)), parts)
        gold = _gold(jax.tree.map(_unstacked, parts))

        def total(outputs: Float[Array, "B ..."]) -> tuple[Float[Array, ""], Scores]:
            scores = self.kind.batch_scores(outputs, gold, gather=self.gather)
            return (scores.losses * scores.weights).sum() / jnp.maximum(weights["examples"], 1), scores

        gradients, scores = jax.grad(total, has_aux=True)(_unstacked(stacked))
        cached = jax.tree.map(lambda leaf: leaf.reshape(*stacked.shape[:2], *leaf.shape[1:]), (scores, gradients))
        return dataclasses.replace(parts, cached=CachedScores(*cached))

    def loss(
        self,
        params: Any,
        *,
        batch: TaskBatch,
        weights: dict[str, Float[Array, ""]],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, ""], Means]:
        """Return this micro-batch's part of the mean loss over examples (tags: over tokens), and its metrics."""
        outputs = self.apply(params, batch, dropout=_dropout(batch, key))
        if batch.cached is None:
            scores = self.kind.batch_scores(outputs, _gold(batch), gather=self.gather)
        else:
            scores = batch.cached.scores
        counted = scores.weights if scores.counted is None else scores.counted
        means = {} if scores.correct is None else {"accuracy": Mean.of(scores.correct, weights=counted)}
        if batch.teacher is not None:
            temperature = self.teacher_temperature
            imitation = self.kind.imitation_losses(outputs, batch.teacher, gold=_gold(batch), temperature=temperature)
            means["imitation_loss"] = Mean.of(imitation, weights=counted)
            losses = (1 - self.teacher_weight) * scores.losses + self.teacher_weight * imitation
            scores = dataclasses.replace(scores, losses=losses)
        empty = (batch.inputs.segment_ids == 0).astype(jnp.float32)
        means["padding_fraction"] = Mean.of(empty, weights=jnp.ones_like(empty))
        loss = (scores.losses * scores.weights).sum() / jnp.maximum(weights["examples"], 1)
        if batch.cached is not None:  # its value is known, and its gradient follows from that for the outputs
            product = (outputs * batch.cached.gradients).sum()
            loss += product - jax.lax.stop_gradient(product)
        return loss, means

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
    return Gold(batch.targets, batch.weights, batch.inputs.segment_ids, batch.rows)


def _dropout(batch: TaskBatch, key: Key[Array, ""] | None) -> Dropout | None:
    return None if key is None else Dropout.create(key, rows=batch.rows)


def _unstacked(leaf: Array) -> Array:
    """Return stacked micro-batches as one batch."""
    return leaf.reshape(-1, *leaf.shape[2:])
