"""Held-out evaluation: masked-LM loss, perplexity and accuracy, next-sentence accuracy, and a unigram baseline.

The unigram model knows only the token frequencies of the held-out text, and is the best model that ignores the context.
It is that of all held-out text, however many sequences are evaluated: made of those alone it would know their rare
tokens, and the fewer there are, the better it would look. A BERT that does not beat it has learned frequencies only:
the plateau at which many failed runs end.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.data.loader import PretrainingBatches
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.evaluation_program import EvaluationProgram
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.training.metrics import Means, MetricWindow
from bert_jax.types import Rows

# Sequences whose token frequencies are the unigram model: all held-out ones of most data sets. The loss of one made of
# N tokens is too low by about V/2N on these: 0.004 nats for 65,536 sequences of 64 and 30,522 tokens.
_MAX_COUNTED = 1 << 16
# Nats per token by which a model must beat word frequencies: measured on a sample, less may be chance.
_BEATS, _BEATS_CLEARLY = 0.1, 0.3


class Evaluator:
    """An evaluation of parameters on fixed sequences with fixed masks."""

    def __init__(
        self,
        program: EvaluationProgram,
        *,
        objective: PretrainingObjective,
        info: DatasetInfo,
        batch_size: int,
        max_examples: int,
        step: Callable[..., Means] | None = None,
    ):
        """Use the first `max_examples` held-out sequences of `info`, rounded up to whole batches.

        `step` replaces the program's step of `objective`.
        Every host reads all held-out sequences once, up to 65,536, to count the token frequencies.
        """
        self._program = program
        shares, share_count = meshes.batch_shards(program.mesh)
        self._batches = self._open(info, batch_size, shares=shares, share_count=share_count)
        self._count = -(-min(max_examples, info.num_validation_rows) // batch_size)
        self.num_examples = min(self._count * batch_size, info.num_validation_rows)
        self._step, self._name = step or program.step(objective), objective.name
        counted = max(self._count, -(-min(_MAX_COUNTED, info.num_validation_rows) // batch_size))
        self._tokens_per_byte = info.tokens_per_byte
        whole = self._open(info, batch_size)
        self._unigram = jnp.asarray(
            unigram_log_probs(
                whole.iterate(start=0, stop=counted),
                vocab_size=objective.model.vocab_size,
                unpredicted=objective.unpredicted_ids,
            )
        )

    @property
    def num_batches(self) -> int:
        """Return the number of batches."""
        return self._count

    def __call__(self, params: Any, *, advance: Callable[[int], None] = lambda _: None) -> dict[str, float]:
        """Return the `eval/...` metrics; `advance` is called with the number of batches so far."""
        window = MetricWindow()
        for index, local in enumerate(self._batches.iterate(start=0, stop=self._count)):
            rows = Rows(**meshes.to_global(local, mesh=self._program.mesh))
            window.add(self._step(params, rows, index, self._unigram))
            advance(index + 1)
        return self.metrics(window.means())

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the `eval/...` metrics for the means over the sequences."""
        metrics = {f"eval/{name}": value for name, value in means.items()}
        loss = means[f"{self._name}_loss"]
        metrics["eval/loss"] = loss + means.get("nsp_loss", 0.0)
        metrics[f"eval/{self._name}_perplexity"] = math.exp(min(loss, 700.0))
        if self._tokens_per_byte is not None:
            metrics["eval/bits_per_byte"] = bits_per_byte(loss, tokens_per_byte=self._tokens_per_byte)
        return metrics

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


def unigram_log_probs(
    batches: Iterable[dict[str, np.ndarray]], *, vocab_size: int, unpredicted: Sequence[int]
) -> np.ndarray:
    """Return float32 [V]: the log of each token's frequency among the tokens that can be predicted."""
    counts = np.zeros(vocab_size, np.int64)
    for rows in batches:
        ids = rows["input_ids"]
        lengths = rows["segment_lengths"].sum((1, 2))
        real = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        counts += np.bincount(ids[real & ~np.isin(ids, unpredicted)], minlength=vocab_size)
    frequencies = np.maximum(counts, 1e-9) / max(counts.sum(), 1)
    return np.log(frequencies).astype(np.float32)


# The language models of the metrics: their titles, and what they predict.
_LANGUAGE_MODELS = {"mlm": ("masked-LM", "masked tokens"), "clm": ("left-to-right LM", "tokens")}


def language_model(metrics: Mapping[str, Any]) -> str:
    """Return the prefix of the language model's metrics: mlm, or clm for the causal objective."""
    return "clm" if "eval/clm_loss" in metrics else "mlm"


def bits_per_byte(loss: float, *, tokens_per_byte: float) -> float:
    """Return a loss in nats per token as bits per UTF-8 byte of the text, which does not depend on the vocabulary.

    Perplexities of two vocabularies do not compare, because a token of one holds more text than a token of the other.
    """
    return loss * tokens_per_byte / math.log(2)


def without_bytes(info: DatasetInfo) -> str:
    """Return why a data set with held-out text has no bits per byte, "" if it has."""
    if info.tokens_per_byte is not None or not info.num_validation_rows:
        return ""
    return (
        f"no bits per byte: the data set in {info.directory} was built by an earlier version, which did not count "
        "the bytes of the text; prepare it again into another folder"
    )


def describe(metrics: dict[str, float]) -> str:
    """Return a line with the metrics of an evaluation."""
    if "eval/relation_loss" in metrics:
        of_model = {key: value for key, value in metrics.items() if key != "eval/relation_loss"}
        rest = f", {describe(of_model).removeprefix('held-out: ')}" if "eval/mlm_loss" in metrics else ""
        return f"held-out: relation loss {metrics['eval/relation_loss']:.4f}{rest}"
    name = language_model(metrics)
    bits = f", {metrics['eval/bits_per_byte']:.3f} bits per byte" if "eval/bits_per_byte" in metrics else ""
    nsp = f", next sentence accuracy {metrics['eval/nsp_accuracy']:.3f}" if "eval/nsp_accuracy" in metrics else ""
    return (
        f"held-out: {_LANGUAGE_MODELS[name][0]} loss {metrics[f'eval/{name}_loss']:.3f} "
        f"(unigram {metrics['eval/unigram_loss']:.3f}), perplexity {metrics[f'eval/{name}_perplexity']:.1f}{bits}, "
        f"accuracy {metrics[f'eval/{name}_accuracy']:.3f} "
        f"(unigram {metrics['eval/unigram_accuracy']:.3f}){nsp}"
    )


def verdict(metrics: dict[str, float]) -> str:
    """Return a sentence that compares the model with the unigram model."""
    name = language_model(metrics)
    gap = metrics["eval/unigram_loss"] - metrics[f"eval/{name}_loss"]
    accuracy = (
        f"{metrics[f'eval/{name}_accuracy']:.1%} of {_LANGUAGE_MODELS[name][1]} correct vs. "
        f"{metrics['eval/unigram_accuracy']:.1%}"
    )
    if gap > _BEATS:
        use = "uses context" if gap > _BEATS_CLEARLY else "begins to use context; more steps or text will show more"
        return f"The model beats word frequencies by {gap:.2f} nats per token on unseen text ({accuracy}): it {use}."
    if gap > -_BEATS:
        return (
            f"The model does not beat word frequencies yet ({gap:+.2f} nats per token, {accuracy}): every BERT passes "
            "through this plateau. Train longer, with more text or a larger learning rate."
        )
    return (
        f"The model is still worse than word frequencies ({gap:+.2f} nats per token, {accuracy}): it has just started "
        "to learn."
    )
