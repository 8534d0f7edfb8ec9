"""Any number of labels out of C for a sentence or a pair, each decided by itself."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Gold, OutputKind, Score, Scores, rounded
from bert_jax.model.task_heads import SequenceClassifier


@dataclasses.dataclass(frozen=True)
class MultiLabel(OutputKind):
    """Outputs [B, E, C], a logit for each label, predicted above 0; targets [B, E, C], float32, 1 where it is right."""

    name = "multilabel"
    huggingface_class = "ForSequenceClassification"
    problem_type = "multi_label_classification"
    pipeline_tag = "text-classification"
    prediction_tasks = ("classify", "pair")
    target_dtype = np.float32

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the classifier of the pooled [CLS]."""
        return SequenceClassifier(config, self.num_labels)

    def scores(self, outputs: Float[Array, "B E C"], gold: Gold) -> Scores:
        """Return the mean over labels of the sigmoid cross-entropy; right are examples with all labels right.

        The mean over labels and examples is that of PyTorch's `BCEWithLogitsLoss`, which HuggingFace trains with.
        """
        losses = optax.sigmoid_binary_cross_entropy(outputs, gold.targets).mean(-1)
        right = ((outputs > 0) == (gold.targets > 0)).all(-1)
        return Scores(losses, right.astype(jnp.float32), gold.weights)

    def baseline(self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any]) -> float:
        """Return the metric of the best constant answer: of each number of labels, the most frequent ones."""
        del lengths
        ranks = np.argsort(np.argsort(-np.sum(targets, axis=0), kind="stable"))
        answers = [np.where(ranks < count, 1, -1).astype(np.float32) for count in range(self.num_labels + 1)]
        return max(score([answer] * len(targets)) for answer in answers)

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return [B, E, C] of zeros."""
        del length
        return np.zeros((rows, examples, self.num_labels), self.target_dtype)

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return the labels whose probability exceeds a half, and the probabilities of all."""
        shares = np.exp(-np.logaddexp(0, -output))  # a sigmoid that overflows nowhere
        return {
            "labels": [label for label, logit in zip(labels, output, strict=True) if logit > 0],
            "probabilities": dict(zip(labels, rounded(shares), strict=True)),
        }
