"""Estimate the size of a data set and the time to build it, before reading the text."""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from bert_jax.config import DataConfig, instances_per_row
from bert_jax.data.opening import without_compression
from bert_jax.data.records import row_spec
from bert_jax.data.source import TextSource
from bert_jax.data.vocabulary import DEFAULT_VOCAB_SIZE, VOCABULARY_BYTES
from bert_jax.data.workers import default_num_workers
from bert_jax.errors import UserError, counted
from bert_jax.progress import duration, format_bytes

# Expansion of compressed text, measured on novels with each program's default settings.
_EXPANSION = {".gz": 2.6, ".bz2": 3.6, ".xz": 3.7, ".zst": 2.7, ".zip": 2.6, ".parquet": 1.8}
# Bytes of a token of English, by vocabulary size: 2.99, 3.82, 4.11 and 4.40 in novels for a vocabulary of 1,024, 4,096,
# 8,192 and 30,522 learned from them; 3.36, 4.41, 4.64 and 4.72 in the embedded corpus, which is 2 MB. The curve is
# between the two. Wikipedia, with its numbers and names, has 2.54 for 1,024.
_MOST_BYTES_PER_TOKEN = 4.5  # other languages have fewer, Chinese 3
_BYTES_PER_TOKEN_LOST = 0.058  # times the square of the halvings of the vocabulary, from 30,522
_MOST_HALVINGS = 6  # smaller vocabularies were not measured
# pairs.py ends an instance with the sentence that reaches the target length, and cuts off what is over. For sentences
# of s bytes that is E[s^2] / 2 E[s] on average: 135 in novels, 89 in Wikipedia, 56 in the embedded corpus. Chosen so
# that the number of sequences of novels and of the embedded corpus is about right.
_OVERSHOOT_BYTES = 110
# Of the text of an instance that the next one does not read again: half of those for next-sentence prediction take
# their B from another document and continue after A, which is half of the instance on average.
_CONSUMED = {"mlm+nsp": 0.75}
# Least instances of a document: what follows A before a random B becomes another one, if there is a second sentence.
_LEAST_INSTANCES = {"mlm+nsp": 2}
_EMBEDDED_DOCUMENT_BYTES = 3050
_RECORD_BYTES = 68  # overhead of ArrayRecord and the Example around a row
_LEARNED_BYTES_PER_SECOND = 6e6  # by one process; 6 to 13 for 1,024 to 30,522 tokens
_TEXT_BYTES_PER_SECOND = 5e6  # per core, one length: benchmarks/data_set.py
_EMBEDDED_BYTES_PER_SECOND = 0.7e6  # of prose, by one process, which parses Python's sources


@dataclasses.dataclass(frozen=True)
class TextSize:
    """How much text there is, as far as a sample shows."""

    bytes: int
    documents: int
    one_sentence: float = 0  # fraction of the documents that have only one
    embedded_bytes: int = 0  # of `bytes`, those of the embedded corpus

    def with_embedded(self, num_bytes: int) -> "TextSize":
        """Return the size together with `num_bytes` of the embedded corpus."""
        return dataclasses.replace(
            self,
            bytes=self.bytes + num_bytes,
            documents=self.documents + num_bytes // _EMBEDDED_DOCUMENT_BYTES,
            embedded_bytes=self.embedded_bytes + num_bytes,
        )


def estimate_text(sources: Sequence[TextSource]) -> int:
    """Return the estimated bytes of text in the sources."""
    return int(sum(source.size * _expansion(source.path) for source in sources))


def _expansion(path: str) -> float:
    return _EXPANSION.get(without_compression(path)[1] or PurePosixPath(path).suffix.lower(), 1.0)


def describe_estimate(text: TextSize, *, config: DataConfig, max_seq_lengths: Sequence[int], vocab_size: int) -> str:
    """Return a line with the estimated size and build time; unless `config.vocab` is set, a vocabulary is learned."""
    rows = rows_by_length(text, config=config, max_seq_lengths=max_seq_lengths, vocab_size=vocab_size)
    sequences = ", ".join(f"{counted(number, 'sequence')} of {length}" for length, number in rows.items())
    num_workers = config.num_workers or default_num_workers()
    seconds = text.bytes / _TEXT_BYTES_PER_SECOND / num_workers + text.embedded_bytes / _EMBEDDED_BYTES_PER_SECOND
    if not config.vocab:
        seconds += min(text.bytes, VOCABULARY_BYTES) / _LEARNED_BYTES_PER_SECOND
    time = duration(seconds) if seconds >= 1 else "less than 1 s"
    return (
        f"estimate: {format_bytes(text.bytes)} of text, {sequences}, {format_bytes(_data_set_bytes(rows))} in total "
        f"(plus {format_bytes(text.bytes)} during the build); {time} with {counted(num_workers, 'worker')}"
    )


def check_disk_space(
    out: Path, *, text: TextSize, config: DataConfig, max_seq_lengths: Sequence[int], vocab_size: int
) -> None:
    """Compare the estimated size of the files still to be written with the free disk space.

    Raises:
      UserError: if the disk is too small.
    """
    existing = next(parent for parent in [out, *out.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    rows = rows_by_length(text, config=config, max_seq_lengths=max_seq_lengths, vocab_size=vocab_size)
    needed = _data_set_bytes(rows) + text.bytes
    needed -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())  # files of an interrupted build
    if needed > free:
        raise UserError(
            f"the disk of {existing} has {format_bytes(free)} free, but about {format_bytes(needed)} are needed: "
            "free disk space, or choose another --out"
        )


def rows_by_length(
    text: TextSize, *, config: DataConfig, max_seq_lengths: Sequence[int], vocab_size: int
) -> dict[int, int]:
    """Return the estimated number of sequences of each length."""
    return {
        length: estimate_rows(text, config=config, max_seq_length=length, vocab_size=vocab_size)
        for length in max_seq_lengths
    }


def estimate_rows(text: TextSize, *, config: DataConfig, max_seq_length: int, vocab_size: int) -> int:
    """Return the estimated number of sequences of a text.

    Within 13 % for novels and the embedded corpus, which the constants were chosen by, at lengths 64, 128 and 512 and
    vocabularies from 1,024 to 30,522. For Wikipedia within 10 % from 4,096 on, but up to 20 % too low at 1,024.
    """
    halvings = min(max(math.log2(DEFAULT_VOCAB_SIZE / vocab_size), 0), _MOST_HALVINGS)
    bytes_per_token = _MOST_BYTES_PER_TOKEN - _BYTES_PER_TOKEN_LOST * halvings**2
    special = 2 if config.objective == "mlm" else 3
    length = min(config.max_instance_length or max_seq_length, max_seq_length) if config.pack else max_seq_length
    # Short instances have all lengths up to the longest.
    mean = max(length - special, 1) * (1 - config.short_seq_prob / 2)
    overshoot = 0 if config.objective == "mlm" else _OVERSHOOT_BYTES / bytes_per_token
    consumed = (mean + overshoot) * _CONSUMED.get(config.objective, 1)
    # A document of n tokens becomes n / consumed instances, rounded up; documents are taken to have exponentially
    # distributed lengths.
    document_tokens = max(text.bytes / bytes_per_token / max(text.documents, 1), 1)
    least = 1 + (_LEAST_INSTANCES.get(config.objective, 1) - 1) * (1 - text.one_sentence)
    rows = max(text.documents, 1) * least / -math.expm1(-least * consumed / document_tokens)
    if config.pack:
        share = (min(mean, document_tokens) + special) / max_seq_length
        rows *= max(share, 1 / instances_per_row(config, max_seq_length=max_seq_length))
    return int(rows) + 1


def _data_set_bytes(rows: Mapping[int, int]) -> int:
    """Return the bytes of a data set with `rows` sequences of each length."""
    return sum(number * (row_spec(length, vocab_size=1).num_bytes + _RECORD_BYTES) for length, number in rows.items())
