"""Token classification: one tag per scored token (paper section 5.3: no CRF)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Baseline, Gold, OutputKind, Score, Scores, class_scores, unpack_tokens
from bert_jax.model.task_heads import TokenClassifier
from bert_jax.rows.packing import Placement, token_positions


@dataclasses.dataclass(frozen=True)
class Tags(OutputKind):
    """Outputs [B, T, C]: logits. Targets [B, T]: label ids, -1 for a token that is not scored."""

    name = "tags"
    huggingface_class = "ForTokenClassification"
    pipeline_tag = "token-classification"
    per_token = True
    prediction_tasks = ("tag",)

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with a classifier of each token."""
        return TokenClassifier(config, self.num_labels)

    def weights(self, gold: Gold) -> Float[Array, "B T"]:
        """Return 1 for each scored token."""
        return (gold.targets >= 0).astype(jnp.float32)

    def scores(self, outputs: Float[Array, "B T C"], gold: Gold) -> Scores:
        """Return the cross-entropy of each token."""
        return class_scores(outputs, gold, weights=self.weights(gold))

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return the prediction of the first label, O, for each token."""
        del targets
        outside = np.eye(self.num_labels, dtype=np.float32)[:1]
        outputs = [np.repeat(outside, length, axis=0) for length in lengths]
        return Baseline(score(outputs), f"the tag {labels[0]!r} for each word")

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return -1 for each token, [B, T]."""
        del examples
        return np.full((rows, length), -1, self.target_dtype)

    def set_targets(self, targets: np.ndarray, values: Sequence[Any], *, placement: Placement) -> None:
        """Write the tags of each example, starting at its first position."""
        lengths = np.array([len(tags) for tags in values], np.int64)
        tokens = token_positions(placement.rows * targets.shape[1] + placement.starts, lengths=lengths)
        targets.reshape(-1)[tokens] = np.concatenate(values)

    def unpack(self, row: np.ndarray, *, slot: int, start: int, length: int) -> np.ndarray:
        """Return the logits of the example's tokens."""
        del slot
        return unpack_tokens(row, start=start, length=length)
