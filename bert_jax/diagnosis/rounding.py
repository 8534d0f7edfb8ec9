"""How far a kernel in bfloat16 may be from the exact result: bounds from the arithmetic, element by element.

Each value that is rounded to bfloat16 is off by up to u = 2^-8 of itself. Roundings of different terms are independent
and of mean zero, so errors of a sum add as squares (Higham and Mary, "A New Approach to Probabilistic Rounding Error
Analysis", 2019). `CONFIDENCE` standard deviations bound every element, and each is taken as u, though that of a
rounding is at most u / sqrt(3). The last rounding, of the result, is bounded as it is. Sums run in float32.
"""

import math
from collections.abc import Sequence

import numpy as np

UNIT, UNIT_FLOAT32 = 2.0**-8, 2.0**-24
CONFIDENCE = 6.0

Bounds = list[np.ndarray]


def attention_bounds(
    arrays: Sequence[np.ndarray], *, expected: Sequence[np.ndarray], allowed: np.ndarray, rate: float
) -> Bounds:
    """Return the bound of each of `expected`: the output, and the gradients of `arrays` but the last.

    `arrays` are query, key and value, [B, T, N, K], each followed by its bias, [N, K], and the output's cotangent;
    `allowed` [B, 1, T, T] says which key each query sees.
    """
    q, q_bias, k, k_bias, v, v_bias, d_out = (np.asarray(array, np.float64) for array in arrays)
    q, k, v, scale, keep = q + q_bias, k + k_bias, v + v_bias, 1 / math.sqrt(q.shape[-1]), 1 / (1 - rate)
    scores = np.where(allowed, scale * np.einsum("btnk,bsnk->bnts", q, k), -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    p = weights / weights.sum(-1, keepdims=True)

    def squares(equation: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.einsum(equation, one**2, other**2)

    # A probability is off, relatively, as its score is absolutely (queries are rounded twice, keys once), and rounded.
    of_p = UNIT**2 * (3 * scale**2 * squares("btnk,bsnk->bnts", q, k) + 1)
    p_error = p * keep * np.sqrt(of_p)
    out = squares("bnts,bsnk->btnk", p_error, v) + UNIT**2 * squares("bnts,bsnk->btnk", p * keep, v)
    to_value = squares("bnts,btnk->bsnk", p_error, d_out)
    # Gradients of scores: p (dP - delta), with dP = dO v and delta = sum of dO out.
    d_p = keep * np.einsum("btnk,bsnk->bnts", d_out, v)
    delta = np.einsum("btnk,btnk->bnt", d_out, np.einsum("bnts,bsnk->btnk", p, v))[..., None]
    of_d_p = UNIT**2 * keep**2 * squares("btnk,bsnk->bnts", d_out, v)
    rounded_out = out + UNIT**2 * np.asarray(expected[0], np.float64) ** 2
    of_delta = np.einsum("btnk,btnk->bnt", d_out**2, rounded_out)[..., None]
    d_scores = p**2 * (d_p**2 + delta**2)
    of_scores = scale**2 * (d_scores * (of_p + UNIT**2) + p**2 * (of_d_p + of_delta))
    to_query = np.einsum("bnts,bsnk->btnk", of_scores + scale**2 * UNIT**2 * d_scores, k**2)
    to_key = np.einsum("bnts,btnk->bsnk", of_scores + 2 * scale**2 * UNIT**2 * d_scores, q**2)
    pairs = zip((to_query, to_key, to_value), (expected[1], expected[3], expected[5]), strict=True)
    gradients = []
    for square, result in pairs:
        rounded = square + UNIT**2 * np.asarray(result, np.float64) ** 2  # a bias's gradient sums rounded ones
        gradients += [square, rounded.sum((0, 1))]
    return [_bound(square, result) for square, result in zip((out, *gradients), expected, strict=True)]


def norm_bounds(arrays: Sequence[np.ndarray], *, expected: Sequence[np.ndarray], rate: float, eps: float) -> Bounds:
    """Return the bound of each of `expected`: the norm, and the gradients of `arrays` but the last.

    `arrays` are the input and the sub-layer's product, [B, T, D], the product's bias and the norm's scale and bias,
    [D], and the norm's cotangent. What is dropped is taken as if it were not.
    """
    hidden, product, product_bias, gain, _, d_out = (np.asarray(array, np.float64) for array in arrays)
    keep, width = 1 / (1 - rate), hidden.shape[-1]
    added = keep * np.abs(product + product_bias)
    total = np.abs(hidden) + added
    of_total = UNIT**2 * (2 * added**2 + total**2)
    # The variance of the sum with what dropout leaves of it, at the least: of the input alone.
    inverse = 1 / np.sqrt(hidden.var(-1, keepdims=True) + eps)
    normal = total * inverse
    of_normal = inverse**2 * (of_total + (of_total * (1 + normal**2)).mean(-1, keepdims=True) / width * (1 + normal**2))
    out = gain**2 * of_normal
    scaled = np.abs(gain * d_out)
    along = np.sqrt((scaled**2 * normal**2).sum(-1, keepdims=True)) / width
    of_means = (scaled**2 * of_normal).sum(-1, keepdims=True) / width**2 * normal**2
    # The factor 1 / sigma is off as the variance is.
    of_inverse = (of_normal * normal**2).sum(-1, keepdims=True) / width**2
    to_hidden = inverse**2 * (of_normal * along**2 + of_means + of_inverse * scaled**2)
    to_product = keep**2 * to_hidden
    rounded = to_product + UNIT**2 * np.asarray(expected[2], np.float64) ** 2
    count = d_out.shape[0] * d_out.shape[1]
    to_bias = (count * UNIT_FLOAT32) ** 2 * (d_out**2).sum((0, 1))
    squares = (out, to_hidden, to_product, rounded.sum((0, 1)), (d_out**2 * of_normal).sum((0, 1)), to_bias)
    return [_bound(square, result) for square, result in zip(squares, expected, strict=True)]


def worst(actual: Sequence[np.ndarray], *, expected: Sequence[np.ndarray], bounds: Bounds) -> list[float]:
    """Return for each array the largest error as a fraction of its bound; infinite where a value is not finite."""
    fractions = []
    for one, other, bound in zip(actual, expected, bounds, strict=True):
        difference = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        fraction = float((difference / np.maximum(bound, 1e-30)).max())
        fractions.append(fraction if math.isfinite(fraction) else math.inf)
    return fractions


def _bound(square: np.ndarray, result: np.ndarray) -> np.ndarray:
    return CONFIDENCE * np.sqrt(square) + UNIT * np.abs(np.asarray(result, np.float64))
