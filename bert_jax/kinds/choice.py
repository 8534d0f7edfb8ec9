"""One of up to `group` endings, each an instance of its own (paper section 4.4). An empty instance is left out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import (
    Baseline,
    Gold,
    OutputKind,
    Score,
    Scores,
    class_scores,
    existing_instances,
    rounded,
    softmax,
)
from bert_jax.model.task_heads import SequenceClassifier
from bert_jax.training.divergence import softmax_divergence

_MISSING = -1e30  # finite: the loss of an empty slot is then a number, which its weight of 0 removes


@dataclasses.dataclass(frozen=True)
class Choice(OutputKind):
    """Outputs [B, E, group]: one score per ending. Targets [B, E]: the index of the correct ending."""

    name = "choice"
    has_label_names = False
    huggingface_class = "ForMultipleChoice"
    pipeline_tag = "multiple-choice"
    in_transformers_pipeline = False
    prediction_tasks = ("choice",)
    can_imitate = True

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with a head of one score per instance, computed from the pooled [CLS]."""
        return SequenceClassifier(config, 1)

    def by_example(self, outputs: Float[Array, "B S 1"], *, examples: int) -> Float[Array, "B E G"]:
        """Return the scores of each example's endings."""
        return outputs.reshape(outputs.shape[0], examples, self.group)

    def scores(self, outputs: Float[Array, "B E G"], gold: Gold) -> Scores:
        """Return the cross-entropy of each example: a softmax over the endings that it has."""
        logits = jnp.where(existing_instances(gold, group=self.group), outputs, _MISSING)
        return class_scores(logits, gold, weights=gold.weights)

    def imitation_losses(
        self, outputs: Float[Array, "B E C"], teacher: Float[Array, "B E C"], *, gold: Gold, temperature: float
    ) -> Float[Array, "B E"]:
        """Return the divergence of the softmaxes over the endings."""
        exists = existing_instances(gold, group=self.group)
        student, teacher = (jnp.where(exists, logits, _MISSING) for logits in (outputs, teacher))
        return softmax_divergence(student, teacher, temperature=temperature)

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return guessing at random."""
        del score, targets, labels
        endings = (np.asarray(lengths).reshape(-1, self.group) > 0).sum(1)
        return Baseline(float(np.mean(1.0 / np.maximum(endings, 1))), "guessing at random")

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return the index of the best ending and the probabilities of all endings."""
        del labels
        probabilities = softmax(output)
        return {"choice": int(probabilities.argmax()), "probabilities": rounded(probabilities)}
