"""Answer spans: the first and last token of an answer; both are [CLS] if there is no answer (sections 4.2, 4.3)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Baseline, Gold, OutputKind, Score, Scores, unpack_tokens
from bert_jax.model.task_heads import SpanClassifier
from bert_jax.rows.packing import Placement
from bert_jax.training.cross_entropy import exact_cross_entropy

_MASKED = -1e30  # finite, as in attention.py: the loss of an empty slot is then a number, which its weight of 0 removes


@dataclasses.dataclass(frozen=True)
class Span(OutputKind):
    """Outputs [B, T, 2]: logits of start and end. Targets [B, E, 2]: positions in the sequence."""

    name = "span"
    head = "qa_outputs"
    has_label_names = False
    huggingface_class = "ForQuestionAnswering"
    pipeline_tag = "question-answering"
    in_transformers_pipeline = False
    prediction_tasks = ("answer",)

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with start and end logits for each token."""
        return SpanClassifier(config)

    def scores(self, outputs: Float[Array, "B T 2"], gold: Gold) -> Scores:
        """Return the mean cross-entropy of start and end, each over the positions of the example's instance."""
        numbers = jnp.arange(1, gold.weights.shape[1] + 1)
        own: Bool[Array, "B E T"] = gold.segment_ids[:, None, :] == numbers[None, :, None]
        logits = jnp.where(own[..., None], outputs[:, None], _MASKED).swapaxes(-1, -2)  # [B, E, 2, T]
        losses, correct = exact_cross_entropy(logits, gold.targets)
        return Scores(losses.mean(-1), correct.all(-1).astype(jnp.float32), gold.weights)

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return equal logits for all tokens."""
        del targets, labels
        equal = [np.zeros((length, 2), np.float32) for length in lengths]
        return Baseline(score(equal), "equal scores for all tokens")

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return zeros, [B, E, 2]."""
        del length
        return np.zeros((rows, examples, 2), self.target_dtype)

    def set_targets(self, targets: np.ndarray, values: Sequence[Any], *, placement: Placement) -> None:
        """Write both positions, counted from the start of the sequence."""
        targets[placement.rows, placement.slots] = np.asarray(values, self.target_dtype) + placement.starts[:, None]

    def unpack(self, row: np.ndarray, *, slot: int, start: int, length: int) -> np.ndarray:
        """Return the logits of the example's tokens."""
        del slot
        return unpack_tokens(row, start=start, length=length)
