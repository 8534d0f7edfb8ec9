"""Multi-label classification of sentences and sentence pairs: each label is decided independently."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Baseline, Gold, OutputKind, Score, Scores, rounded, sigmoid
from bert_jax.model.task_heads import SequenceClassifier
from bert_jax.training.divergence import sigmoid_divergence


@dataclasses.dataclass(frozen=True)
class MultiLabel(OutputKind):
    """Outputs [B, E, C]: logits; a label is predicted if its logit exceeds 0. Targets [B, E, C]: float32, 0 or 1."""

    name = "multilabel"
    huggingface_class = "ForSequenceClassification"
    problem_type = "multi_label_classification"
    pipeline_tag = "text-classification"
    prediction_tasks = ("classify", "pair")
    can_imitate = True
    target_dtype = np.float32

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with a classifier of the pooled [CLS]."""
        return SequenceClassifier(config, self.num_labels)

    def scores(self, outputs: Float[Array, "B E C"], gold: Gold) -> Scores:
        """Return the sigmoid cross-entropy, averaged over labels. An example is correct if all its labels are.

        The mean over labels and examples is PyTorch's `BCEWithLogitsLoss`, which HuggingFace trains with.
        """
        losses = optax.sigmoid_binary_cross_entropy(outputs, gold.targets).mean(-1)
        correct = ((outputs > 0) == (gold.targets > 0)).all(-1)
        return Scores(losses, correct.astype(jnp.float32), gold.weights)

    def imitation_losses(
        self, outputs: Float[Array, "B E C"], teacher: Float[Array, "B E C"], *, gold: Gold, temperature: float
    ) -> Float[Array, "B E"]:
        """Return the divergence of the sigmoids."""
        del gold
        return sigmoid_divergence(outputs, teacher, temperature=temperature)

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return the best constant prediction: the k most frequent labels, for the best k."""
        del lengths, labels
        ranks = np.argsort(np.argsort(-np.sum(targets, axis=0), kind="stable"))
        answers = [np.where(ranks < count, 1, -1).astype(np.float32) for count in range(self.num_labels + 1)]
        best = max(score([answer] * len(targets)) for answer in answers)
        return Baseline(best, "always answering the most frequent labels")

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return zeros, [B, E, C]."""
        del length
        return np.zeros((rows, examples, self.num_labels), self.target_dtype)

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return the labels with a probability above 0.5, and the probabilities of all labels."""
        probabilities = rounded(sigmoid(output))
        return {
            "labels": [label for label, logit in zip(labels, output, strict=True) if logit > 0],
            "probabilities": dict(zip(labels, probabilities, strict=True)),
        }
