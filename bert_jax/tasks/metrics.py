"""The GLUE metrics in NumPy. `tests/test_task_metrics.py` compares them with scikit-learn and SciPy.

An undefined metric (no positive class, constant predictions) is 0: such a run has learned nothing, and 0 can be
averaged, plotted and written as JSON. All metrics are fractions; tables multiply by 100.
"""

import numpy as np


def accuracy(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return the fraction of predictions that equal their label."""
    return float(np.mean(predictions == labels)) if len(labels) else 0.0


def binary_f1(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return the F1 of class 1, or 0 if neither predictions nor labels contain it."""
    hits = int(np.sum((predictions == 1) & (labels == 1)))
    return f1_from_counts(hits, predicted=int(np.sum(predictions == 1)), gold=int(np.sum(labels == 1))).f1


def macro_f1(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur in predictions or labels."""
    classes = np.union1d(predictions, labels)
    values = [binary_f1((predictions == c).astype(int), labels=(labels == c).astype(int)) for c in classes]
    return float(np.mean(values)) if values else 0.0


def matthews_correlation(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return Matthews' correlation for any number of classes (Gorodkin 2004), or 0 if either side is constant."""
    if not len(labels):
        return 0.0
    table = confusion(predictions, labels=labels, num_labels=int(max(predictions.max(), labels.max())) + 1)
    table = table.astype(np.float64)
    gold, predicted, total = table.sum(1), table.sum(0), table.sum()
    covariance = np.trace(table) * total - gold @ predicted
    scale = np.sqrt(total**2 - predicted @ predicted) * np.sqrt(total**2 - gold @ gold)
    return float(covariance / scale) if scale > 0 else 0.0


def pearson(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return Pearson's correlation, or 0 if either side is constant or a value is not finite."""
    if not np.isfinite(predictions).all():
        return 0.0
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    x = predictions.astype(np.float64) - predictions.astype(np.float64).mean()
    y = labels.astype(np.float64) - labels.astype(np.float64).mean()
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 0 else 0.0


def spearman(predictions: np.ndarray, *, labels: np.ndarray) -> float:
    """Return Spearman's correlation: Pearson's of the ranks. Equal values get their mean rank.

    It is 0 if a value is not finite: NaN has no rank.
    """
    if not np.isfinite(predictions).all():
        return 0.0
    return pearson(_ranks(predictions), labels=_ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].astype(np.float64)


def confusion(predictions: np.ndarray, *, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the confusion matrix [labels, labels]: rows are gold labels, columns predictions."""
    flat = np.bincount(labels * num_labels + predictions, minlength=num_labels * num_labels)
    return flat.reshape(num_labels, num_labels)


class PrecisionRecall:
    """Precision, recall and F1, computed from counts."""

    def __init__(self, hits: int, *, predicted: int, gold: int):
        """Compute the three; a zero denominator gives 0."""
        self.hits, self.predicted, self.gold = hits, predicted, gold
        self.precision = hits / predicted if predicted else 0.0
        self.recall = hits / gold if gold else 0.0
        total = self.precision + self.recall
        self.f1 = 2 * self.precision * self.recall / total if total else 0.0

    def as_json(self) -> dict[str, float]:
        """Return the three and the counts of gold, predicted and correct items."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return scores | {"gold": self.gold, "predicted": self.predicted, "correct": self.hits}


def f1_from_counts(hits: int, *, predicted: int, gold: int) -> PrecisionRecall:
    """Return precision, recall and F1 from the numbers of correct, predicted and gold items."""
    return PrecisionRecall(hits, predicted=predicted, gold=gold)
