"""Ranking: a score for each of up to `group` documents of a query, trained on the scores of a teacher."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.config.task_options import RerankOptions
from bert_jax.kinds.base import Baseline, Gold, OutputKind, Score, Scores, existing_instances
from bert_jax.kinds.regression import Regression
from bert_jax.model.task_heads import SequenceClassifier
from bert_jax.training.divergence import softmax_divergence

_MISSING = -1e30  # as in choice.py


@dataclasses.dataclass(frozen=True)
class Ranking(OutputKind):
    """Outputs [B, E, group]: a score per document. Targets [B, E, group]: float32, the teacher's scores.

    The model is one of regression: a number per pair of query and document.
    """

    options: RerankOptions = dataclasses.field(default_factory=RerankOptions)

    name = "ranking"
    huggingface_class = Regression.huggingface_class
    problem_type = Regression.problem_type
    pipeline_tag = "text-ranking"
    prediction_tasks = ("pair",)
    target_dtype = np.float32

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with one output per pair, computed from the pooled [CLS]."""
        return SequenceClassifier(config, 1)

    def by_example(self, outputs: Float[Array, "B S 1"], *, examples: int) -> Float[Array, "B E G"]:
        """Return the scores of each query's documents."""
        return outputs.reshape(outputs.shape[0], examples, self.group)

    def scores(self, outputs: Float[Array, "B E G"], gold: Gold) -> Scores:
        """Return the loss of each query, and whether its best document is the teacher's."""
        exists = existing_instances(gold, group=self.group)
        student, teacher = (jnp.where(exists, values, _MISSING) for values in (outputs, gold.targets))
        correct = (student.argmax(-1) == teacher.argmax(-1)).astype(jnp.float32)
        if self.options.loss == "kl":
            losses = softmax_divergence(student, teacher, temperature=self.options.temperature)
        else:
            others = exists[..., 1:].astype(jnp.float32)
            margins = ((values[..., :1] - values[..., 1:]) * others for values in (outputs, gold.targets))
            error = jnp.square(next(margins) - next(margins))
            losses = error.sum(-1) / jnp.maximum(others.sum(-1), 1)
        return Scores(losses, correct, gold.weights)

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return random scores."""
        del lengths, labels
        rng = np.random.default_rng(0)
        return Baseline(score([rng.standard_normal(self.group, np.float32) for _ in targets]), "random scores")

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return zeros, [B, E, G]."""
        del length
        return np.zeros((rows, examples, self.group), self.target_dtype)
