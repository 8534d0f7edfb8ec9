"""Evaluate on held-out rows: masked-LM loss, perplexity and accuracy, next-sentence accuracy, beside the unigram model.

The unigram model knows the held-out text's own token frequencies and nothing else: the best that ignoring the context
can do. A BERT that does not beat it has learned nothing but frequencies (the plateau that most failed runs report).
"""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.data.loader import PretrainingBatches
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.evaluation_program import EvaluationProgram
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.training.metrics import MetricWindow
from bert_jax.types import Rows


class Evaluator:
    """Evaluate parameters on the same rows with the same masks, every time."""

    def __init__(
        self,
        program: EvaluationProgram,
        *,
        objective: PretrainingObjective,
        info: DatasetInfo,
        batch_size: int,
        max_examples: int,
    ):
        """Take the first `max_examples` held-out rows of `info`, rounded up to whole batches.

        Every host reads all of them once, for the token frequencies.
        """
        self._program = program
        shares, share_count = meshes.batch_shares(program.mesh)
        self._batches = self._open(info, batch_size, shares=shares, share_count=share_count)
        self._count = -(-min(max_examples, info.num_validation_rows) // batch_size)
        self.num_examples = min(self._count * batch_size, info.num_validation_rows)
        self._step = program.step(objective)
        whole = self._open(info, batch_size)
        self._unigram = jnp.asarray(
            unigram_log_probs(
                whole.iterate(start=0, stop=self._count),
                vocab_size=objective.model.vocab_size,
                special=objective.special,
            )
        )

    def __call__(self, params: Any) -> dict[str, float]:
        """Return `eval/...` figures."""
        window = MetricWindow()
        for index, local in enumerate(self._batches.iterate(start=0, stop=self._count)):
            rows = Rows(**meshes.to_global(local, mesh=self._program.mesh))
            window.add(self._step(params, rows, index, self._unigram))
        means = window.means()
        figures = {f"eval/{name}": value for name, value in means.items()}
        figures["eval/loss"] = means["mlm_loss"] + means.get("nsp_loss", 0.0)
        figures["eval/mlm_perplexity"] = math.exp(min(means["mlm_loss"], 700.0))
        return figures

    @staticmethod
    def _open(
        info: DatasetInfo, batch_size: int, *, shares: tuple[int, ...] = (0,), share_count: int = 1
    ) -> PretrainingBatches:
        return PretrainingBatches(
            info.directory,
            max_seq_length=info.max_seq_length,
            split="validation",
            batch_size=batch_size,
            seed=0,
            shards=shares,
            num_shards=share_count,
            shuffle=False,
        )


def unigram_log_probs(batches: Iterable[dict[str, np.ndarray]], *, vocab_size: int, special: SpecialIds) -> np.ndarray:
    """Return float32 [V]: the log of each token's share of the tokens that can be masked."""
    counts = np.zeros(vocab_size, np.int64)
    for rows in batches:
        ids = rows["input_ids"]
        lengths = rows["segment_lengths"].sum((1, 2))
        real = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        counts += np.bincount(ids[real & (ids != special.cls_id) & (ids != special.sep_id)], minlength=vocab_size)
    shares = np.maximum(counts, 1e-9) / max(counts.sum(), 1)
    return np.log(shares).astype(np.float32)


def describe(figures: dict[str, float]) -> str:
    """Return an evaluation in one line."""
    nsp = f", next sentence accuracy {figures['eval/nsp_accuracy']:.3f}" if "eval/nsp_accuracy" in figures else ""
    return (
        f"held-out: masked-LM loss {figures['eval/mlm_loss']:.3f} (unigram {figures['eval/unigram_loss']:.3f}), "
        f"perplexity {figures['eval/mlm_perplexity']:.1f}, accuracy {figures['eval/mlm_accuracy']:.3f} "
        f"(unigram {figures['eval/unigram_accuracy']:.3f}){nsp}"
    )


def verdict(figures: dict[str, float]) -> str:
    """Say in plain words how far the model is from the unigram model."""
    gap = figures["eval/unigram_loss"] - figures["eval/mlm_loss"]
    accuracy = (
        f"{figures['eval/mlm_accuracy']:.1%} of masked tokens right beside {figures['eval/unigram_accuracy']:.1%}"
    )
    if gap > 0.1:
        return (
            f"The model beats word frequencies by {gap:.2f} nats a token on text it has not seen ({accuracy}): it uses "
            "context."
        )
    if gap > -0.1:
        return (
            f"The model is no better than word frequencies yet ({gap:+.2f} nats, {accuracy}): the plateau every BERT "
            f"passes "
            "through; train longer, with more text or a larger learning rate."
        )
    return f"The model is still worse than word frequencies ({gap:+.2f} nats, {accuracy}): it has just begun to learn."
