"""The pre-training loss (paper A.2): mean masked-LM loss plus mean next-sentence loss."""

import dataclasses
from typing import Any, ClassVar, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax.config import MaskingConfig, ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.dropout import Dropout
from bert_jax.model.heads import PretrainingModel
from bert_jax.pretrain.masking import default_max_predictions, mask_rows, row_predictions
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.training.cross_entropy import cross_entropy
from bert_jax.training.metrics import Mean, Means
from bert_jax.types import PretrainingBatch, PretrainingLogits, Rows


@dataclasses.dataclass(frozen=True)
class PretrainingObjective:
    """Masking, the model, and the masked-LM and next-sentence losses; `next_sentence` False omits the second.

    `max_predictions` is P, the slots of a sequence; an instance gets at most `max_predictions_per_seq` of them (0: P).
    """

    model: ModelConfig
    masking: MaskingConfig
    special: SpecialIds
    max_predictions: int
    next_sentence: bool
    max_predictions_per_seq: int = 0

    name: ClassVar[str] = "mlm"  # of its metrics

    def __post_init__(self) -> None:
        """Check that the model has the heads.

        Raises:
          UserError: if its architecture has no next-sentence head.
        """
        check_heads(self.model, next_sentence=self.next_sentence)

    @property
    def unpredicted_ids(self) -> tuple[int, ...]:
        """Return the ids that are never predicted."""
        return (self.special.cls_id, self.special.sep_id)

    def prepare(self, rows: Rows, *, key: Key[Array, ""]) -> PretrainingBatch:
        """Return the masked global batch; the masks depend only on `key` and the index of each sequence."""
        return mask_rows(
            rows,
            key=key,
            masking=self.masking,
            special=self.special,
            max_predictions=self.max_predictions,
            max_predictions_per_seq=self.max_predictions_per_seq,
        )

    def weights(self, batch: PretrainingBatch) -> dict[str, Float[Array, ""]]:
        """Return the numbers of predictions and of instances."""
        return {"mlm": batch.weights.sum(), "nsp": batch.next_sentence_weights.sum()}

    def loss(
        self,
        params: Any,
        *,
        batch: PretrainingBatch,
        weights: dict[str, Float[Array, ""]],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, ""], Means]:
        """Return this part's contribution to the loss and its metrics; `key` None means no dropout."""
        dropout = None if key is None else Dropout.create(key, rows=batch.rows)
        logits = cast(
            PretrainingLogits,
            PretrainingModel(self.model).apply(
                {"params": params},
                batch.inputs,
                positions=batch.positions,
                cls_positions=batch.cls_positions,
                dropout=dropout,
            ),
        )
        loss, means = self.scores(logits, batch=batch, weights=weights)
        return loss, means | fill_metrics(batch)

    def scores(
        self, logits: PretrainingLogits, *, batch: PretrainingBatch, weights: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Means]:
        """Return the loss of `logits`, and its metrics."""
        means = _scores(self.name, logits.masked_lm, labels=batch.labels, weights=batch.weights)
        loss = means[f"{self.name}_loss"].total / jnp.maximum(weights["mlm"], 1)
        if self.next_sentence:
            assert logits.next_sentence is not None
            means |= _scores(
                "nsp",
                logits.next_sentence,
                labels=batch.next_sentence_labels,
                weights=batch.next_sentence_weights,
            )
            loss += means["nsp_loss"].total / jnp.maximum(weights["nsp"], 1)
        return loss, means

    def evaluate(self, params: Any, rows: Rows, *, key: Key[Array, ""], unigram_log_probs: Float[Array, " V"]) -> Means:
        """Return the metrics on held-out sequences, and those of the unigram model at the same positions."""
        batch = self.prepare(rows, key=key)
        _, means = self.loss(params, batch=batch, weights=self.weights(batch), key=None)
        for name in fill_metrics(batch):
            del means[name]
        most_frequent = jnp.argmax(unigram_log_probs)
        means["unigram_loss"] = Mean.of(-unigram_log_probs[batch.labels], weights=batch.weights)
        means["unigram_accuracy"] = Mean.of((batch.labels == most_frequent).astype(jnp.float32), weights=batch.weights)
        return means


def check_heads(model: ModelConfig, *, next_sentence: bool) -> None:
    """Check that the model's architecture has the heads of an objective.

    Raises:
      UserError: if it has no next-sentence head.
    """
    if next_sentence and "next_sentence" not in architecture_of(model).pretraining_parts:
        raise UserError(
            f"config.model.architecture={model.architecture} has no next-sentence head: set config.data.objective=mlm"
        )


def make_objective(
    model: ModelConfig,
    *,
    masking: MaskingConfig,
    special: SpecialIds,
    max_seq_length: int,
    instances: int,
    max_predictions_per_seq: int,
    next_sentence: bool,
    cls: type[PretrainingObjective] = PretrainingObjective,
) -> PretrainingObjective:
    """Return the objective, a `cls`, for sequences of up to `instances` instances.

    `max_predictions_per_seq` 0 means the number that the masking rate needs. P is large enough for all instances of a
    packed sequence.
    """
    limit = max_predictions_per_seq or default_max_predictions(max_seq_length, rate=masking.rate)
    return cls(
        model=model,
        masking=masking,
        special=special,
        max_predictions=row_predictions(max_seq_length, instances=instances, rate=masking.rate, limit=limit),
        max_predictions_per_seq=limit,
        next_sentence=next_sentence,
    )


def fill_metrics(batch: PretrainingBatch) -> Means:
    """Return the fraction of padding and, with packing, the mean number of instances per sequence."""
    padding = (batch.inputs.segment_ids == 0).astype(jnp.float32)
    means = {"padding_fraction": Mean.of(padding, weights=jnp.ones_like(padding))}
    if batch.next_sentence_weights.shape[1] > 1:
        instances = batch.next_sentence_weights.sum(1)
        means["instances_per_row"] = Mean.of(instances, weights=jnp.ones_like(instances))
    return means


def _scores(name: str, logits: Float[Array, "*n C"], *, labels: Int[Array, "*n"], weights: Float[Array, "*n"]) -> Means:
    """Return the cross-entropy in nats and the accuracy."""
    loss, correct = cross_entropy(logits, labels)
    return {
        f"{name}_loss": Mean.of(loss, weights=weights),
        f"{name}_accuracy": Mean.of(correct.astype(jnp.float32), weights=weights),
    }
