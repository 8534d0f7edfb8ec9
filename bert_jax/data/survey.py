"""Survey complete intermediate shards: split off held-out documents, and divide both splits into shards."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bert_jax.config import DataConfig
from bert_jax.data.documents import MAX_PART
from bert_jax.data.intermediate import IS_FIRST_PART, Chunk, IntermediateShards, StoredDocument, read_done
from bert_jax.data.pairs import ONE_DOCUMENT, WHERE_DOCUMENTS_END
from bert_jax.data.source import ReadReport
from bert_jax.errors import UserError

SHARD_BYTES = 16 << 20  # of text: about 4 M tokens, 10 MB of records in uint16; bounds a worker's memory
_MIN_SHARD_BYTES = 1 << 20
_SMALL_CORPUS_SHARDS = 8  # keeps several cores busy for a small corpus too
_BINS = 1 << 16  # of positions; shards end between bins
_DIGEST_BITS = 128
_LONG_DOCUMENT = 1 << 15  # bytes; the only document of a corpus has a held-out part from here on
_MIN_PART = 1 << 12  # characters


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard: the range [low, high) of positions of a split."""

    split: str
    index: int
    count: int
    low: int
    high: int
    text_bytes: int


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known about the corpus once all of it is read."""

    intermediate: IntermediateShards
    shards: tuple[Shard, ...]
    num_documents: int
    num_paragraphs: int
    text_bytes: int
    text_digest: str  # of all documents, independent of their order
    report: ReadReport

    def training_texts(self, max_bytes: int) -> Iterator[str]:
        """Yield paragraphs of training documents up to `max_bytes`, ordered by position, which is a random order."""
        for document in self.training_documents():
            for text in document.texts:
                if max_bytes <= 0:
                    return
                max_bytes -= len(text)
                yield text

    def training_documents(self) -> Iterator[StoredDocument]:
        """Yield the training documents, ordered by position, which is a random order."""
        for shard in self.shards:
            if shard.split == "train":
                yield from self.intermediate.read(split=shard.split, low=shard.low, high=shard.high)


def survey(directory: Path, *, chunks: Sequence[Chunk], config: DataConfig, by_part: bool = False) -> Survey:
    """Return the survey of the complete intermediate shards in `directory`; `by_part` holds out parts of one document.

    Unless `heldout_fraction` is 0, both splits get at least one document if there are two. With mlm+nsp both get two:
    a random B of a held-out instance must not be training text.

    Raises:
      UserError: if there is no text, or there are too few documents.
    """
    report, digest, paragraphs, blocks = ReadReport(), 0, 0, []
    for chunk in chunks:
        done = read_done(directory / f"{chunk.index:06d}")
        if done is None:
            raise UserError(f"{directory / f'{chunk.index:06d}'}: has changed while it was read: run the command again")
        report.merge(done.report)
        digest += done.digest
        paragraphs += done.paragraphs
        blocks += [f"{chunk.index:06d}/{block:06d}" for block in range(done.blocks)]
    report.require_text(config.input)
    intermediate = IntermediateShards(directory=str(directory), blocks=tuple(blocks), heldout_below=0, by_part=by_part)
    at_least = 2 if config.objective == "mlm+nsp" else 1
    num_documents, below = _divide(intermediate, heldout_fraction=config.heldout_fraction, at_least=at_least)
    intermediate = dataclasses.replace(intermediate, heldout_below=below)
    shards, text_bytes = [], 0
    for split in ("train", "validation"):
        histogram = _histogram(intermediate, split)
        shards += _cut(histogram, split)
        text_bytes += int(histogram.sum())
    return Survey(
        intermediate=intermediate,
        shards=tuple(shards),
        num_documents=num_documents,
        num_paragraphs=paragraphs,
        text_bytes=text_bytes,
        text_digest=f"{digest % (1 << _DIGEST_BITS):032x}",
        report=report,
    )


def _divide(intermediate: IntermediateShards, *, heldout_fraction: float, at_least: int) -> tuple[int, int]:
    """Return the number of documents and the key hash below which they are held out."""
    count, smallest, largest = 0, np.empty(0, np.uint64), np.empty(0, np.uint64)
    for _, index in intermediate.indexes():
        is_first = index["flags"] & IS_FIRST_PART > 0
        count += int(is_first.sum())
        keys = index["position"] if intermediate.by_part else index["key"][is_first]
        smallest = np.sort(np.concatenate([smallest, keys]))[:at_least]
        largest = np.sort(np.concatenate([largest, keys]))[-at_least:]
    if count < at_least:
        raise UserError(ONE_DOCUMENT)
    if heldout_fraction == 0 or (count == 1 and not intermediate.by_part):
        return count, 0
    if count < 2 * at_least and not intermediate.by_part:
        raise UserError(
            f"{count} documents are too few: next-sentence prediction needs two to train on and two to hold "
            "out, because a random next sentence comes from another document; give more documents, or set "
            f"config.data.objective=mlm or config.data.heldout_fraction=0; {WHERE_DOCUMENTS_END}"
        )
    # Hash values are uniform: `fraction` of them are below fraction * 2**64. The bounds matter for small corpora.
    threshold = int(heldout_fraction * float(1 << 64))
    return count, min(max(threshold, int(smallest[-1]) + 1), int(largest[0]))


def part_size(corpus: Survey, *, config: DataConfig) -> int:
    """Return the size of the parts of which one is held out where the corpus is one long document, else 0."""
    is_long = corpus.num_documents == 1 and corpus.text_bytes >= _LONG_DOCUMENT
    if not is_long or not config.heldout_fraction or config.objective == "mlm+nsp":
        return 0
    return max(_MIN_PART, min(MAX_PART, int(corpus.text_bytes * config.heldout_fraction)))


def _histogram(intermediate: IntermediateShards, split: str) -> np.ndarray:
    """Return the bytes of text of a split per bin of positions."""
    histogram = np.zeros(_BINS, np.int64)
    for _, index in intermediate.indexes():
        entries = index[intermediate.in_split(index, split)]
        bins = (entries["position"] >> np.uint64(64 - 16)).astype(np.int64)
        histogram += np.bincount(bins, weights=entries["length"], minlength=_BINS).astype(np.int64)
    return histogram


def _cut(histogram: np.ndarray, split: str) -> list[Shard]:
    """Divide the positions into non-empty shards with nearly equal amounts of text."""
    total = int(histogram.sum())
    if total == 0:
        return []
    count = max(-(-total // SHARD_BYTES), min(_SMALL_CORPUS_SHARDS, -(-total // _MIN_SHARD_BYTES)))
    cumulative = np.concatenate([[0], np.cumsum(histogram)])
    edges = np.searchsorted(cumulative, np.arange(1, count) * total / count).tolist()
    edges = [0, *edges, _BINS]
    ranges = [(low, high) for low, high in itertools.pairwise(edges) if cumulative[low] < cumulative[high]]
    width = (1 << 64) // _BINS
    return [
        Shard(split, number, len(ranges), low * width, high * width, int(cumulative[high] - cumulative[low]))
        for number, (low, high) in enumerate(ranges)
    ]
