"""Compute the GLUE metrics in NumPy; `tests/test_task_metrics.py` holds them to scikit-learn and scipy.

Where a metric is undefined (no positive class, constant predictions) it is 0: such a run has learned nothing, and a
number can be averaged, plotted and written as JSON. All metrics are fractions; tables multiply by 100.
"""

import numpy as np


def accuracy(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return the share of equal entries."""
    return float(np.mean(predictions == labels)) if len(labels) else 0.0


def binary_f1(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return the F1 of class 1, 0 where it is neither predicted nor there."""
    hits = int(np.sum((predictions == 1) & (labels == 1)))
    return f1_from_counts(hits, predicted=int(np.sum(predictions == 1)), gold=int(np.sum(labels == 1))).f1


def macro_f1(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur in either."""
    classes = np.union1d(predictions, labels)
    values = [binary_f1((predictions == c).astype(int), labels=(labels == c).astype(int)) for c in classes]
    return float(np.mean(values)) if values else 0.0


def matthews_correlation(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return Matthews' correlation for any number of classes (Gorodkin 2004), 0 where either side is constant."""
    if not len(labels):
        return 0.0
    table = confusion(predictions, labels=labels, num_labels=int(max(predictions.max(), labels.max())) + 1)
    table = table.astype(np.float64)
    gold, predicted, total = table.sum(1), table.sum(0), table.sum()
    covariance = np.trace(table) * total - gold @ predicted
    scale = np.sqrt(total**2 - predicted @ predicted) * np.sqrt(total**2 - gold @ gold)
    return float(covariance / scale) if scale > 0 else 0.0


def pearson(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return Pearson's correlation, 0 where either side is constant."""
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    x = predictions.astype(np.float64) - predictions.astype(np.float64).mean()
    y = labels.astype(np.float64) - labels.astype(np.float64).mean()
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 0 else 0.0


def spearman(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(predictions), labels=_ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].astype(np.float64)


def confusion(predictions: np.ndarray, *, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return how often each label (row) was predicted as each (column)."""
    flat = np.bincount(labels * num_labels + predictions, minlength=num_labels * num_labels)
    return flat.reshape(num_labels, num_labels)


class PrecisionRecall:
    """Hold precision, recall and F1 of counts."""

    def __init__(self, hits: int, *, predicted: int, gold: int):
        """Compute them; 0 where nothing was predicted or nothing is there."""
        self.precision = hits / predicted if predicted else 0.0
        self.recall = hits / gold if gold else 0.0
        both = self.precision + self.recall
        self.f1 = 2 * self.precision * self.recall / both if both else 0.0


def f1_from_counts(hits: int, *, predicted: int, gold: int) -> PrecisionRecall:
    """Return precision, recall and F1 of `hits` right among `predicted`, where there are `gold`."""
    return PrecisionRecall(hits, predicted=predicted, gold=gold)
