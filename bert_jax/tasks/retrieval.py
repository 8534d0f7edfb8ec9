"""Retrieval: the documents nearest to each query by their embeddings, and the metrics of the ranking."""

import dataclasses
from collections.abc import Sequence

import numpy as np

CUTOFF = 10  # of MRR and nDCG
RECALLS = (1, 10, 100)
_QUERIES = 256  # compared with all documents at a time


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Queries and documents as texts; `relevant` has the indices of the documents that answer each query."""

    queries: Sequence[str]
    documents: Sequence[str]
    relevant: Sequence[frozenset[int]]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The nearest documents of each query, the nearest first: indices and similarities, [Q, k]."""

    documents: np.ndarray
    similarities: np.ndarray


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return vectors scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def rank(queries: np.ndarray, *, documents: np.ndarray, is_cosine: bool, count: int = max(RECALLS)) -> Ranking:
    """Return the `count` nearest documents [N, D] of each query [Q, D]. Of equally near ones the first comes first."""
    if is_cosine:
        queries, documents = unit_length(queries), unit_length(documents)
    count = min(count, len(documents))
    order = np.zeros((len(queries), count), np.int64)
    values = np.zeros((len(queries), count), np.float32)
    for start in range(0, len(queries), _QUERIES):
        similarities = queries[start : start + _QUERIES] @ documents.T
        part = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
        order[start : start + _QUERIES] = part
        values[start : start + _QUERIES] = np.take_along_axis(similarities, part, axis=1)
    return Ranking(order, values)


def ranking_metrics(ranking: Ranking, *, relevant: Sequence[frozenset[int]]) -> dict[str, float]:
    """Return nDCG@10 and MRR@10, and the recall at 1, 10 and 100, each averaged over the queries.

    A document is relevant or not; nDCG's ideal ranking has all relevant documents first.
    """
    hits = np.array(
        [[index in answers for index in row] for row, answers in zip(ranking.documents.tolist(), relevant, strict=True)]
    ).reshape(ranking.documents.shape)
    counts = np.array([len(answers) for answers in relevant])
    top = hits[:, :CUTOFF]
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    ideal = np.cumsum(discounts)[np.minimum(counts, CUTOFF) - 1]
    first = np.where(top.any(1), 1 / (top.argmax(1) + 1), 0.0)
    metrics = {
        f"ndcg@{CUTOFF}": float(np.mean((top * discounts[: top.shape[1]]).sum(1) / ideal)),
        f"mrr@{CUTOFF}": float(np.mean(first)),
    }
    return metrics | {f"recall@{k}": float(np.mean(hits[:, :k].sum(1) / counts)) for k in RECALLS}
