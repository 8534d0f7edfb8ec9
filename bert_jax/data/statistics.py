"""Statistics of a data set: counts per shard, then totals."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bert_jax.progress import format_bytes

# Paragraph hashes kept for the whole corpus to find duplicates: 2 MB of memory. With fewer paragraphs the fraction of
# duplicates is exact; with more it is an estimate from this sample, standard error below 0.1 percentage points.
DUPLICATE_SAMPLE = 1 << 18
MANY_DUPLICATES = 0.05  # of the paragraphs


@dataclasses.dataclass
class LengthCounts:
    """Counts of a shard at one max_seq_length; `num_tokens` includes special tokens, but not padding."""

    num_rows: int = 0
    num_instances: int = 0
    num_tokens: int = 0
    num_token_pairs: int = 0  # sum of squared instance lengths: pairs of tokens that attend to each other
    num_labels: int = 0  # instances with next_sentence_label 1
    file_bytes: int = 0

    def add(self, other: "LengthCounts") -> None:
        """Add the counts of another shard."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass
class ShardCounts:
    """Counts of a shard; `num_tokens` counts the text once, without special tokens.

    `num_bytes` is the size of the same text in UTF-8, before normalization and without separators of paragraphs; 0 in a
    shard that an earlier version wrote. `paragraphs` contains the 64-bit hashes below the sampling threshold, one per
    occurrence, as one hexadecimal string.
    """

    num_documents: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_unknown: int = 0
    max_token_id: int = 0
    paragraphs: str = ""
    lengths: dict[int, LengthCounts] = dataclasses.field(default_factory=dict)


def sampling_threshold(num_paragraphs: int) -> int:
    """Return the hash threshold that keeps about `DUPLICATE_SAMPLE` paragraphs."""
    return (1 << 64) * min(DUPLICATE_SAMPLE, max(num_paragraphs, 1)) // max(num_paragraphs, 1)


def summarize(
    counts: Mapping[str, Sequence[ShardCounts]], *, max_seq_length: int, num_paragraphs: int
) -> dict[str, Any]:
    """Return the statistics of a data set at one length as JSON values; `counts` lists the shards of each split.

    Every `*_share` is a fraction between 0 and 1. `duplicate_paragraph_share`: paragraphs that are repetitions.
    `attended_share`: pairs of positions of a sequence that are within one instance. `bytes` is left out where a shard
    does not know them.
    """
    every = [shard for shards in counts.values() for shard in shards]
    sample = np.frombuffer(bytes.fromhex("".join(shard.paragraphs for shard in every)), np.uint64)
    num_tokens, total = sum(shard.num_tokens for shard in every), _total(every, max_seq_length)
    num_bytes = {split: sum(shard.num_bytes for shard in shards) for split, shards in counts.items()}
    has_bytes = all(shard.num_bytes or not shard.num_tokens for shard in every)
    return {
        "documents": {split: sum(shard.num_documents for shard in shards) for split, shards in counts.items()},
        "tokens": {split: sum(shard.num_tokens for shard in shards) for split, shards in counts.items()},
        **({"bytes": num_bytes} if has_bytes else {}),
        "rows": {split: _total(shards, max_seq_length).num_rows for split, shards in counts.items()},
        "instances": {split: _total(shards, max_seq_length).num_instances for split, shards in counts.items()},
        "paragraphs": num_paragraphs,
        "unknown_share": _fraction(sum(shard.num_unknown for shard in every), num_tokens),
        "duplicate_paragraph_share": _fraction(len(sample) - len(np.unique(sample)), len(sample)),
        "padding_share": 1 - _fraction(total.num_tokens, total.num_rows * max_seq_length),
        "attended_share": _fraction(total.num_token_pairs, total.num_rows * max_seq_length**2),
        "next_sentence_label_share": _fraction(total.num_labels, total.num_instances),
        "file_bytes": total.file_bytes,
    }


def _total(shards: Iterable[ShardCounts], max_seq_length: int) -> LengthCounts:
    total = LengthCounts()
    for shard in shards:
        total.add(shard.lengths[max_seq_length])
    return total


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def describe(statistics: dict[str, Any], *, objective: str, max_seq_length: int) -> list[str]:
    """Return the statistics of one length as log lines; only the last one depends on the length."""
    documents, tokens, rows = (statistics[name] for name in ("documents", "tokens", "rows"))
    lines = [
        f"documents: {documents['train']:,} training, {documents['validation']:,} held out",
        f"tokens: {tokens['train']:,} training, {tokens['validation']:,} held out; "
        f"{statistics['unknown_share']:.3%} unknown",
        f"paragraphs: {statistics['paragraphs']:,}; {statistics['duplicate_paragraph_share']:.2%} duplicates",
        f"sequences of {max_seq_length}: {rows['train']:,} training, {rows['validation']:,} held out, "
        f"{format_bytes(statistics['file_bytes'])}; {statistics['padding_share']:.1%} padding",
    ]
    if statistics["duplicate_paragraph_share"] > MANY_DUPLICATES:
        share = f"{statistics['duplicate_paragraph_share']:.0%}"
        lines.insert(-1, f"warning: {share} of the paragraphs are duplicates, which a model memorizes: remove them")
    num_rows, num_instances = sum(rows.values()), sum(statistics["instances"].values())
    if num_instances > num_rows:
        lines[-1] += f", {num_instances / num_rows:.2f} instances per sequence"
    if objective != "mlm":
        meaning = "a random B" if objective == "mlm+nsp" else "swapped segments"
        lines[-1] += f", {statistics['next_sentence_label_share']:.1%} with {meaning}"
    return lines
