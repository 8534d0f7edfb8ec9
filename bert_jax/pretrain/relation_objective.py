"""The loss of distillation: relations of the teacher's layer, and with a weight the pre-training loss."""

import dataclasses
import functools
from typing import Any, cast

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from bert_jax.config import ModelConfig
from bert_jax.model.architectures import architecture_of
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.relation_vectors import relation_vectors
from bert_jax.pretrain.objective import PretrainingObjective, fill_metrics
from bert_jax.training.metrics import Mean, Means
from bert_jax.training.relations import relation_divergences, token_weights
from bert_jax.types import (
    EncoderInputs,
    EncoderOutput,
    PretrainingBatch,
    PretrainingLogits,
    Projections,
    Rows,
    TaughtBatch,
    TaughtRows,
)


@dataclasses.dataclass(frozen=True)
class TeacherModel:
    """The teacher's encoder, cut after the layer that teaches, and the rules for its logical axis names."""

    model: ModelConfig
    rules: tuple[tuple[str, Any], ...] = ()

    def vectors(self, params: Any, inputs: EncoderInputs) -> Projections:
        """Return queries, keys and values of the layer, without dropout."""
        encoder = architecture_of(self.model).encoder(self.model)
        with nn.logical_axis_rules(self.rules):
            encoded = cast(EncoderOutput, encoder.apply({"params": params}, inputs, output_hidden_states=True))
            assert encoded.all_hidden is not None
            return relation_vectors(params, encoded.all_hidden, model=self.model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationObjective(PretrainingObjective):
    """The divergences of query, key and value relations from the teacher's, which reads the same masked sequences.

    The teacher's part is computed in `prepare`: once per step, outside of the gradient and of micro-batches.
    """

    teacher: TeacherModel
    relation_heads: int
    pretraining_weight: float

    def prepare(self, rows: Rows, *, key: Key[Array, ""]) -> TaughtBatch:
        """Return the masked global batch with the teacher's queries, keys and values."""
        assert isinstance(rows, TaughtRows)
        batch = super().prepare(rows, key=key)
        fields = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
        return TaughtBatch(**fields, teacher=self.teacher.vectors(rows.teacher, batch.inputs))

    def loss(
        self,
        params: Any,
        *,
        batch: PretrainingBatch,
        weights: dict[str, Float[Array, ""]],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, ""], Means]:
        """Return this part's contribution to the loss and its metrics; `key` None means no dropout."""
        assert isinstance(batch, TaughtBatch)
        dropout = None if key is None else Dropout.create(key, rows=batch.rows)
        encoder = architecture_of(self.model).encoder(self.model)
        encoded = cast(
            EncoderOutput,
            encoder.apply({"params": params["encoder"]}, batch.inputs, dropout=dropout, output_hidden_states=True),
        )
        assert encoded.all_hidden is not None
        student = relation_vectors(params["encoder"], encoded.all_hidden, model=self.model)
        means = self._relations(student, batch=batch)
        loss = means["relation_loss"].total / jnp.maximum(weights["nsp"], 1)
        if self.pretraining_weight:
            logits = cast(
                PretrainingLogits,
                PretrainingModel(self.model).apply(
                    {"params": params},
                    encoded,
                    positions=batch.positions,
                    cls_positions=batch.cls_positions,
                    method="logits",
                ),
            )
            more, scores = self.scores(logits, batch=batch, weights=weights)
            loss += self.pretraining_weight * more
            means |= scores
        return loss, means | fill_metrics(batch)

    def evaluate(self, params: Any, rows: Rows, *, key: Key[Array, ""], unigram_log_probs: Float[Array, " V"]) -> Means:
        """Return the metrics on held-out sequences; those of the language model only where it is trained."""
        if self.pretraining_weight:
            return super().evaluate(params, rows, key=key, unigram_log_probs=unigram_log_probs)
        batch = self.prepare(rows, key=key)
        _, means = self.loss(params, batch=batch, weights=self.weights(batch), key=None)
        return {name: mean for name, mean in means.items() if name not in fill_metrics(batch)}

    def _relations(self, student: Projections, *, batch: TaughtBatch) -> Means:
        """Return the divergence of each kind of relations, and their sum: means over instances of means over tokens."""
        segment_ids = batch.inputs.segment_ids
        weights, instances = token_weights(segment_ids), batch.next_sentence_weights.sum()

        def of_kind(name: str) -> Mean:
            divergences = relation_divergences(
                getattr(student, name),
                teacher=getattr(batch.teacher, name),
                segment_ids=segment_ids,
                heads=self.relation_heads,
            )
            return Mean((divergences * weights).sum(), instances)

        means = {f"{name}_relation_loss": of_kind(name) for name in ("query", "key", "value")}
        total = functools.reduce(jnp.add, [mean.total for mean in means.values()])
        return {"relation_loss": Mean(total, instances), **means}
