"""The loss of MiniLMv2 in NumPy, text by text and head by head, from the formulas of Wang et al. 2021, section 3.1.

Of queries, keys or values A = [a_1, ..., a_|x|] of a text x, concatenated over attention heads and split into A_r
relation heads of size d_r, the relations of head a are R_a = softmax(A_a A_a^T / sqrt(d_r)), row by row. The loss is

    L = sum over (query, key, value) of 1 / (A_r |x|) sum_a sum_t KL(R_teacher[a, t] || R_student[a, t]).

`gradient` is the derivative by the student's vectors: with S = A A^T / sqrt(d_r), dL/dS = (R_student - R_teacher) /
(A_r |x|), and dL/dA = (dL/dS + dL/dS^T) A / sqrt(d_r).
"""

import math

import numpy as np


def relations(vectors: np.ndarray) -> np.ndarray:
    """Return the relations of one head of a text, [|x|, |x|], for its vectors [|x|, d_r]."""
    scores = vectors @ vectors.T / math.sqrt(vectors.shape[1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def heads_of(vectors: np.ndarray, heads: int) -> list[np.ndarray]:
    """Return the vectors [|x|, d_r] of each relation head."""
    return np.split(np.asarray(vectors, np.float64), heads, axis=1)


def text_loss(student: np.ndarray, teacher: np.ndarray, heads: int) -> float:
    """Return the loss of one text for vectors of one kind, [|x|, D] and [|x|, E]."""
    total = 0.0
    for own, given in zip(heads_of(student, heads), heads_of(teacher, heads), strict=True):
        learned, true = relations(own), relations(given)
        for t in range(len(own)):
            total += float((true[t] * (np.log(true[t]) - np.log(learned[t]))).sum())
    return total / (heads * len(student))


def text_gradient(student: np.ndarray, teacher: np.ndarray, heads: int) -> np.ndarray:
    """Return the derivative of `text_loss` by the student's vectors, [|x|, D]."""
    parts = []
    for own, given in zip(heads_of(student, heads), heads_of(teacher, heads), strict=True):
        by_scores = (relations(own) - relations(given)) / (heads * len(own))
        parts.append((by_scores + by_scores.T) @ own / math.sqrt(own.shape[1]))
    return np.concatenate(parts, axis=1)
