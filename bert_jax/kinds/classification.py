"""Single-label classification of sentences and sentence pairs (run_classifier.py of the original)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Baseline, Gold, OutputKind, Score, Scores, class_scores, rounded, softmax
from bert_jax.model.task_heads import SequenceClassifier
from bert_jax.training.divergence import softmax_divergence


@dataclasses.dataclass(frozen=True)
class Classification(OutputKind):
    """Outputs [B, E, C]: logits. Targets [B, E]: label ids."""

    name = "classification"
    huggingface_class = "ForSequenceClassification"
    pipeline_tag = "text-classification"
    prediction_tasks = ("classify", "pair")
    can_imitate = True

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with a classifier of the pooled [CLS]."""
        return SequenceClassifier(config, self.num_labels)

    def scores(self, outputs: Float[Array, "B E C"], gold: Gold) -> Scores:
        """Return the cross-entropy of each example."""
        scores = class_scores(outputs, gold, weights=self.weights(gold))
        return dataclasses.replace(scores, counted=gold.weights) if self.class_weights else scores

    def weights(self, gold: Gold) -> Float[Array, "B E"]:
        """Return the weights of the examples: those of their classes, as PyTorch's `CrossEntropyLoss(weight)`.

        Only their ratios count. The smallest is 1, because the objective divides by at least 1.
        """
        if not self.class_weights:
            return gold.weights
        of_class = jnp.asarray(np.asarray(self.class_weights) / min(self.class_weights), jnp.float32)
        return gold.weights * of_class[jnp.maximum(gold.targets, 0)]

    def imitation_losses(
        self, outputs: Float[Array, "B E C"], teacher: Float[Array, "B E C"], *, gold: Gold, temperature: float
    ) -> Float[Array, "B E"]:
        """Return the divergence of the softmaxes."""
        del gold
        return softmax_divergence(outputs, teacher, temperature=temperature)

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return the majority class: the best of all constant predictions."""
        del lengths
        scores = [score([label] * len(targets)) for label in np.eye(self.num_labels, dtype=np.float32)]
        best = int(np.argmax(scores))
        return Baseline(scores[best], f"always answering {labels[best]!r}")

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return the most probable label and the probabilities of all labels."""
        probabilities = softmax(output)
        best = int(probabilities.argmax())
        values = rounded(probabilities)
        return {
            "label": labels[best],
            "probability": values[best],
            "probabilities": dict(zip(labels, values, strict=True)),
        }
