"""Text embeddings: one vector per text, trained by comparing the texts of a batch. There is no head."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.config.task_options import EmbedOptions
from bert_jax.kinds.base import Baseline, Gather, Gold, OutputKind, Score, Scores
from bert_jax.model.task_heads import SentenceEncoder
from bert_jax.training.contrastive import Contrast, Examples, cosent, info_nce, matryoshka

_BASELINE_SIZE = 32  # of the random embeddings of the baseline


@dataclasses.dataclass(frozen=True)
class Embedding(OutputKind):
    """Outputs [B, E, G, D]: the embedding of each text of an example.

    Targets are the numbers of the texts, int32 [B, E, G], 0 for a missing one; for scored pairs float32 [B, E].
    """

    options: EmbedOptions = dataclasses.field(default_factory=EmbedOptions)

    name = "embedding"
    head = ""
    has_label_names = False
    spans_batch = True
    huggingface_class = "Model"
    pipeline_tag = "sentence-similarity"
    prediction_tasks = ("embed",)

    @property
    def _is_scored(self) -> bool:
        return self.options.form == "scores"

    def model(self, config: ModelConfig) -> nn.Module:
        """Return the encoder with pooling."""
        return SentenceEncoder(config, self.options.pooling or "mean")

    def by_example(self, outputs: Float[Array, "B S D"], *, examples: int) -> Float[Array, "B E G D"]:
        """Return the embeddings of each example's texts."""
        return outputs.reshape(outputs.shape[0], examples, self.group, outputs.shape[-1])

    def scores(self, outputs: Float[Array, "B E G D"], gold: Gold) -> Scores:
        """Return the loss of a whole batch on one replica."""
        return self.batch_scores(outputs, gold, gather=lambda tree: tree)

    def batch_scores(self, outputs: Float[Array, "B E G D"], gold: Gold, *, gather: Gather) -> Scores:
        """Return the loss of each example among those of all replicas: one gather of their embeddings."""
        own = self._examples(outputs, gold)
        contrast = self._loss(own, gather(own))
        shape = gold.weights.shape
        correct = None if contrast.correct is None else contrast.correct.reshape(shape)
        return Scores(contrast.losses.reshape(shape), correct, gold.weights)

    def _loss(self, own: Examples, every: Examples) -> Contrast:
        options = self.options
        shared: dict[str, Any] = {"temperature": options.temperature, "is_cosine": options.similarity == "cosine"}

        def loss(own: Examples, every: Examples) -> Contrast:
            if self._is_scored:
                return cosent(own, every, **shared)
            return info_nce(own, every, symmetric=options.symmetric, **shared)

        return matryoshka(loss, dimensions=options.dimensions)(own, every)

    def _examples(self, outputs: Float[Array, "B E G D"], gold: Gold) -> Examples:
        rows, slots = gold.weights.shape
        numbers: Int[Array, " B"] = jnp.arange(rows) if gold.rows is None else gold.rows
        targets = gold.targets.reshape(rows * slots, -1)
        return Examples(
            embeddings=outputs.reshape(rows * slots, *outputs.shape[2:]),
            texts=jnp.zeros((rows * slots, self.group), jnp.int32) if self._is_scored else targets,
            labels=targets[:, 0].astype(jnp.float32),
            weights=gold.weights.reshape(-1),
            numbers=(numbers[:, None] * slots + jnp.arange(slots)[None, :]).reshape(-1),
        )

    def baseline(
        self, score: Score, *, lengths: Sequence[int], targets: Sequence[Any], labels: Sequence[str]
    ) -> Baseline:
        """Return random embeddings; their metric is at least 0."""
        del targets, labels
        rng = np.random.default_rng(0)
        shape = (self.group, _BASELINE_SIZE)
        random = [rng.standard_normal(shape, np.float32) for _ in range(len(lengths) // self.group)]
        return Baseline(max(0.0, score(random)), "random embeddings")

    def empty_targets(self, *, rows: int, length: int, examples: int) -> np.ndarray:
        """Return zeros: [B, E, G] int32, or [B, E] float32 for scored pairs."""
        del length
        if self._is_scored:
            return np.zeros((rows, examples), np.float32)
        return np.zeros((rows, examples, self.group), np.int32)

    def set_targets(self, targets: np.ndarray, values: Sequence[Any], *, placement: Any) -> None:
        """Write the target of each example."""
        targets[placement.rows, placement.slots] = np.asarray(values, targets.dtype)
