"""Regression: one number per sentence or sentence pair (STS-B)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.kinds.base import Baseline, Gold, OutputKind, Score, Scores, rounded
from bert_jax.model.task_heads import SequenceClassifier


@dataclasses.dataclass(frozen=True)
class Regression(OutputKind):
    """Outputs [B, E, 1]. Targets [B, E]: float32."""

    name = "regression"
    huggingface_class = "ForSequenceClassification"
    problem_type = "regression"
    pipeline_tag = "text-classification"
    prediction_tasks = ("classify", "pair")
    can_imitate = True
    target_dtype = np.float32

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with one output, computed from the pooled [CLS]."""
        return SequenceClassifier(config, 1)

    def scores(self, outputs: Float[Array, "B E 1"], gold: Gold) -> Scores:
        """Return the squared error of each example."""
        return Scores(jnp.square(outputs[..., 0] - gold.targets), None, gold.weights)

    def imitation_losses(
        self, outputs: Float[Array, "B E C"], teacher: Float[Array, "B E C"], *, gold: Gold, temperature: float
    ) -> Float[Array, "B E"]:
        """Return the squared difference."""
        del gold, temperature
        return jnp.square(outputs - teacher)[..., 0]

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return a correlation of 0.1; a constant prediction has a correlation of 0."""
        del score, lengths, targets, labels
        return Baseline(0.1, "a correlation of 0.1")

    @classmethod
    def answer(cls, output: np.ndarray, *, labels: Sequence[str]) -> dict[str, Any]:
        """Return the number, or one number per label for a HuggingFace head with several outputs."""
        values = rounded(output)
        return {"score": values[0]} if len(values) == 1 else {"scores": dict(zip(labels, values, strict=True))}
