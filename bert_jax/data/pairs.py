"""Make instances of segments A and B from documents, as create_pretraining_data.py of google-research/bert does.

An instance is four offsets into the token ids of the documents: A and B are contiguous, so nothing is copied before
the records are written. Nothing is masked here: one data set serves every seed.

Two recipes:

* `original` samples like the original, in the same order: one target length per document, and a random B whenever only
  one segment is left, so more than half of the labels are 1.
* `modern` has two differences. It samples a target length per instance: with one short length for a whole novel, the
  novel would be split into thousands of short instances. And the label is always a fair coin: a single segment that
  needs its true next segment is joined with its neighbor in the document instead of getting a random B.

Neither samples B from A's own document. The original does after ten attempts that hit it.
"""

import dataclasses
import random
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from bert_jax.errors import UserError
from bert_jax.rows.truncation import truncate_spans, truncate_spans_one_by_one

Pair = tuple[int, int, int, int, int]  # start and end of A, start and end of B, label
# What to type where a file contains several documents.
WHERE_DOCUMENTS_END = (
    "where the text contains several, say where they end: --config.data.documents=lines (each line is one), "
    "blank_lines (blank lines between them), or a separator such as '<|endoftext|>'"
)
ONE_DOCUMENT = (
    "next-sentence prediction samples B from another document, but there is only one: "
    f"give more documents, or set config.data.objective=mlm; {WHERE_DOCUMENTS_END}"
)


@dataclasses.dataclass(frozen=True)
class TokenizedDocuments:
    """Documents as one array of token ids, divided into segments (sentences) and documents.

    Attributes:
      ids: [N] token ids of all documents, concatenated.
      segment_bounds: [segments + 1] offsets into `ids`; no segment is empty.
      document_bounds: [documents + 1] offsets into the segments; no document is empty.
      keys: [documents] equal for parts of the same long document.
      num_own: instances are built from the first `num_own` documents; the others are donors of a random B.
    """

    ids: np.ndarray
    segment_bounds: np.ndarray
    document_bounds: np.ndarray
    keys: np.ndarray
    num_own: int


@dataclasses.dataclass(frozen=True)
class Instances:
    """Instances as offsets into `TokenizedDocuments.ids`, [I, 2] per segment, and labels [I].

    `b` is an empty range for the objective mlm. `labels` is 1 for a random B (mlm+nsp) and for swapped segments
    (mlm+sop, where `a` then comes after `b` in the text), else 0.
    """

    a: np.ndarray
    b: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def make_instances(
    documents: TokenizedDocuments,
    *,
    max_seq_length: int,
    objective: str,
    recipe: str,
    short_seq_prob: float,
    rng: random.Random,
    word_starts: np.ndarray,
) -> Instances:
    """Divide `documents` into instances, in the given order.

    `word_starts` [vocab_size] marks the ids that start a word: the single segments of `mlm` end at a word boundary.

    Raises:
      UserError: with mlm+nsp if all text is one document, so B cannot come from another one.
      ValueError: for an objective or recipe that does not exist.
    """
    num_special_tokens = 2 if objective == "mlm" else 3
    lengths = _TargetLengths(max_seq_length - num_special_tokens, short_seq_prob, recipe, rng)
    match objective, recipe:
        case "mlm", _:
            pairs = _single_segments(documents, lengths, word_starts[documents.ids])
        case "mlm+sop", _:
            pairs = _ordered_pairs(documents, lengths)
        case "mlm+nsp", "original":
            pairs = _original_pairs(documents, lengths)
        case "mlm+nsp", "modern":
            pairs = _balanced_pairs(documents, lengths)
        case _:
            raise ValueError(f"unknown objective {objective!r} or recipe {recipe!r}")
    if objective == "mlm+nsp" and documents.num_own and len(np.unique(documents.keys)) < 2:
        raise UserError(ONE_DOCUMENT)
    truncate = truncate_spans_one_by_one if recipe == "original" else truncate_spans
    limit = lengths.max_num_tokens
    table = [(*truncate(pair[:4], limit=limit, rng=rng), pair[4]) for pair in pairs]
    table = np.asarray(table, np.int64).reshape(-1, 5)
    return Instances(a=table[:, 0:2], b=table[:, 2:4], labels=table[:, 4].astype(np.int32))


class _TargetLengths:
    """Sampler of target lengths: the maximum, or with probability `short_seq_prob` a shorter one."""

    def __init__(self, max_num_tokens: int, short_seq_prob: float, recipe: str, rng: random.Random):
        self.max_num_tokens = max_num_tokens
        self.rng = rng
        self._short_seq_prob = short_seq_prob
        self._per_document = recipe == "original"
        self._current = 0

    def start_document(self) -> None:
        """Sample the length for a whole document, with the recipe original."""
        if self._per_document:
            self._current = self._sample()

    def next_instance(self) -> int:
        """Return the target length of the next instance."""
        return self._current if self._per_document else self._sample()

    def _sample(self) -> int:
        if self.rng.random() < self._short_seq_prob:
            return self.rng.randint(2, self.max_num_tokens)
        return self.max_num_tokens


class _RandomNext:
    """Sampler of a random B: segments from a random position of a random document other than A's."""

    def __init__(self, documents: TokenizedDocuments, rng: random.Random):
        self._segments = documents.segment_bounds.tolist()
        self._documents = documents.document_bounds.tolist()
        self._keys = documents.keys.tolist()
        self._rng = rng

    def sample(self, document: int, target_length: int) -> tuple[int, int]:
        """Return a range of at least one segment that reaches `target_length` if its document is long enough."""
        other = document
        while self._keys[other] == self._keys[document]:
            other = self._rng.randint(0, len(self._keys) - 1)
        first, last = self._documents[other], self._documents[other + 1]
        start = first + self._rng.randint(0, last - first - 1)
        end = _first_reaching(self._segments, start, target_length, last)
        return self._segments[start], self._segments[end]


def _first_reaching(bounds: list[int], start: int, length: int, last: int) -> int:
    """Return the end of the shortest range of segments from `start` with at least `length` tokens, at most `last`."""
    return min(bisect_left(bounds, bounds[start] + length, start + 1, last + 1), last)


def _original_pairs(documents: TokenizedDocuments, lengths: _TargetLengths) -> Iterator[Pair]:
    bounds, ends, rng = documents.segment_bounds.tolist(), documents.document_bounds.tolist(), lengths.rng
    random_next = _RandomNext(documents, rng)
    for document in range(documents.num_own):
        lengths.start_document()
        start, last = ends[document], ends[document + 1]
        while start < last:
            target = lengths.next_instance()
            end = _first_reaching(bounds, start, target, last)
            split = start + (rng.randint(1, end - start - 1) if end - start >= 2 else 1)
            if end - start == 1 or rng.random() < 0.5:
                b = random_next.sample(document, target - (bounds[split] - bounds[start]))
                yield bounds[start], bounds[split], *b, 1
                start = split  # the unused segments start the next instance
            else:
                yield bounds[start], bounds[split], bounds[split], bounds[end], 0
                start = end


def _balanced_pairs(documents: TokenizedDocuments, lengths: _TargetLengths) -> Iterator[Pair]:
    bounds, ends, rng = documents.segment_bounds.tolist(), documents.document_bounds.tolist(), lengths.rng
    random_next = _RandomNext(documents, rng)
    for document in range(documents.num_own):
        lengths.start_document()
        first, last = ends[document], ends[document + 1]
        start = first
        while start < last:
            target = lengths.next_instance()
            end = _first_reaching(bounds, start, target, last)
            is_random = rng.random() < 0.5
            if not is_random and end - start == 1:
                start, end = _with_neighbor(start, first, last)
                is_random = end - start == 1  # a document of one segment has no true next segment
            split = start + (rng.randint(1, end - start - 1) if end - start >= 2 else 1)
            if is_random:
                b = random_next.sample(document, target - (bounds[split] - bounds[start]))
                yield bounds[start], bounds[split], *b, 1
                start = split
            else:
                yield bounds[start], bounds[split], bounds[split], bounds[end], 0
                start = end


def _ordered_pairs(documents: TokenizedDocuments, lengths: _TargetLengths) -> Iterator[Pair]:
    """Yield adjacent segments, swapped by a fair coin; a document of one segment yields nothing."""
    bounds, ends, rng = documents.segment_bounds.tolist(), documents.document_bounds.tolist(), lengths.rng
    for document in range(documents.num_own):
        lengths.start_document()
        first, last = ends[document], ends[document + 1]
        start = first
        while start < last:
            end = _first_reaching(bounds, start, lengths.next_instance(), last)
            if end - start == 1:
                start, end = _with_neighbor(start, first, last)
                if end - start == 1:
                    break
            split = start + rng.randint(1, end - start - 1)
            left, right = (bounds[start], bounds[split]), (bounds[split], bounds[end])
            swapped = rng.random() < 0.5
            yield (*right, *left, 1) if swapped else (*left, *right, 0)
            start = end


def _with_neighbor(start: int, first: int, last: int) -> tuple[int, int]:
    """Return the segment `start` with the next one, else with the previous one, else alone."""
    if start + 1 < last:
        return start, start + 2
    return (start - 1, start + 1) if start > first else (start, start + 1)


def _single_segments(documents: TokenizedDocuments, lengths: _TargetLengths, begins_word: np.ndarray) -> Iterator[Pair]:
    """Yield each document as full-length segments, split only between words, ignoring sentence ends."""
    bounds = documents.segment_bounds[documents.document_bounds].tolist()
    for document in range(documents.num_own):
        lengths.start_document()
        start, last = bounds[document], bounds[document + 1]
        while start < last:
            target = lengths.next_instance()
            end = min(start + target, last)
            while start < end < last and not begins_word[end]:
                end -= 1
            if end == start:  # a word longer than the target: up to its end, if the maximum length allows
                end, limit = end + 1, min(start + lengths.max_num_tokens, last)
                while end < limit and not begins_word[end]:
                    end += 1
            yield start, end, end, end, 0
            start = end
