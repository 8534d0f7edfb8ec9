"""How far two float32 evaluations of one formula may be apart: bounds from the number of terms and of roundings."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.model.attention import AttentionMask

UNIT = 2.0**-24
# Of one layer: three projections, scores, weights, values, output, two of the feed-forward block, two norms.
SUMS_A_LAYER = 11


def sum_bound(terms: int, *, size: float = 1.0) -> float:
    """Return how far two orders of a sum of products may be apart whose result is about `size`.

    Each side adds in blocks: a rounding per level of a tree of the terms. Terms of random sign have a sum sqrt(terms)
    times smaller than the sum of their magnitudes, which is what roundings are relative to.
    """
    return 2 * UNIT * math.log2(terms) * math.sqrt(terms) * size


def encoder_bound(model: ModelConfig, *, size: float = 1.0) -> float:
    """Return how far two evaluations of an encoder and a head may be apart, in outputs of about `size`.

    A layer's norm brings its output, and the errors that came in, to size 1; its sums add theirs. Probabilities and
    normalized vectors move by no more than what they are computed from.
    """
    terms = max(model.intermediate_size, model.max_position_embeddings)
    return (model.num_hidden_layers * SUMS_A_LAYER + 1) * sum_bound(terms, size=size)


def attention_magnitudes(
    arrays: Sequence[jax.Array], *, mask: AttentionMask, rate: float
) -> tuple[list[np.ndarray], float]:
    """Return for the output and each gradient the sum of the sizes of its terms, and the largest such sum of a score.

    `arrays` are query, key and value, [B, T, N, K], each followed by its bias, [N, K], and the output's cotangent. The
    same formulas as attention's, in float64, with every term positive: what rounding is relative to. The gradient of
    the keys' bias, say, is 0 but for rounding (it adds the same to all scores of a query), its terms are not.
    """
    q, q_bias, k, k_bias, v, v_bias, outer = (np.asarray(array, np.float64) for array in arrays)
    scale = 1 / math.sqrt(q.shape[-1])
    products = np.einsum("btnk,bsnk->bnts", q + q_bias, k + k_bias)
    scores = np.where(np.asarray(mask.dense()), scale * products, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities = weights / weights.sum(-1, keepdims=True)
    # A kernel may multiply an array and its bias apart, and leave out what sums to 0 (the keys' bias).
    q, k, v = (np.abs(array) + np.abs(bias) for array, bias in ((q, q_bias), (k, k_bias), (v, v_bias)))
    outer = np.abs(outer)
    kept = probabilities / (1 - rate)  # as if nothing were dropped, at the scale of what is not
    to_kept = np.einsum("btnk,bsnk->bnts", outer, v) / (1 - rate)
    to_scores = scale * probabilities * (to_kept + (probabilities * to_kept).sum(-1, keepdims=True))
    of_query, of_key = np.einsum("bnts,bsnk->btnk", to_scores, k), np.einsum("bnts,btnk->bsnk", to_scores, q)
    of_value = np.einsum("bnts,btnk->bsnk", kept, outer)
    pairs = [(array, array.sum((0, 1))) for array in (of_query, of_key, of_value)]
    sizes = [np.einsum("bnts,bsnk->btnk", kept, v), *(array for pair in pairs for array in pair)]
    return sizes, float(scale * np.einsum("btnk,bsnk->bnts", q, k).max())


def assert_attention_rounded_alike(
    actual: Sequence[jax.Array],
    expected: Sequence[jax.Array],
    *,
    arrays: Sequence[jax.Array],
    mask: AttentionMask,
    rate: float,
) -> None:
    """Compare output and gradients from two implementations, given `arrays`: both are right within float32's rounding.

    A probability is off, relatively, by as much as its score is absolutely: a rounding per term of the score. Every sum
    on the way (of scores, of weights, over tokens twice, over rows) adds a rounding per level of a tree of its terms;
    summed in another order, or in wider vectors, it has others. Both sides may be off by as much.
    """
    sizes, score = attention_magnitudes(arrays, mask=mask, rate=rate)
    levels = 5 * math.log2(max(arrays[0].shape))
    for number, (first, second, size) in enumerate(zip(actual, expected, sizes, strict=True)):
        difference = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))
        assert (difference <= 2 * UNIT * (score + levels) * size).all(), number
