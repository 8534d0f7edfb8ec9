"""How far two float32 evaluations of one formula may be apart: bounds from the number of terms and of roundings."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.model.attention import AttentionMask
from tests.tiny_model import worst_difference

UNIT = 2.0**-24
# bfloat16 keeps eight bits.
UNIT_BFLOAT16 = 2.0**-9
# exp, log, tanh and erf are polynomials, not rounded correctly: five ulp, of two units each, is what OpenCL 3.0 allows
# tanh, and more than XLA, SLEEF and NumPy take for any of them.
FUNCTION = 10
# Of one layer: three projections, scores, weights, values, output, two of the feed-forward block, two norms.
SUMS_A_LAYER = 11
# An update of Adam's kind: the norm that clips (a level of a tree of 1,000 terms each), two moments (7), corrections
# (expm1, one rounding of its argument), root, quotient, decay, rate.
ROUNDINGS_AN_UPDATE = 10 + 7 + FUNCTION + 5
# Without bias correction an update is up to (1 - beta1) / sqrt(1 - beta2) = 3.2 rates (Kingma and Ba 2015, 2.1).
UPDATE_SIZE = 4.0
# What is promised to users next to HuggingFace, in float32: an upper limit of the bounds of outputs and gradients.
PROMISED = 1e-4
# What is promised next to sentence-transformers: losses, gradients, cosines.
PROMISED_EMBEDDINGS = 1e-5
# A bound must let no result pass that is wrong by one per cent.
NOTICED = 0.01


def assert_rounded_alike(actual: Any, expected: Any, *, bound: Any, what: str = "") -> None:
    """Compare two evaluations of one formula, and check that one wrong by 1 % at its largest value would be noticed.

    `bound` is absolute: a number, or an array of the shape of the others.
    """
    first, second = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert first.shape == second.shape, what
    limit = np.broadcast_to(np.asarray(bound, np.float64), second.shape)
    apart = np.abs(first - second)
    worst, largest = (apart - limit).argmax(), np.abs(second).argmax()
    assert (apart <= limit).all(), f"{what} {apart.flat[worst]:.2e} apart, the bound is {limit.flat[worst]:.2e}"
    assert limit.flat[largest] < NOTICED * np.abs(second).flat[largest], f"{what} the bound lets 1 % pass"


def assert_trees_rounded_alike(actual: Any, expected: Any, *, bound: float) -> None:
    """Compare two trees of arrays, each array relative to its largest value; 1 % would be noticed."""
    assert bound < NOTICED, f"the bound {bound:.2e} lets 1 % pass"
    apart = worst_difference(actual, expected)
    assert apart <= bound, f"{apart:.2e} apart, the bound is {bound:.2e}"


def rounded(count: float, *, size: float = 1.0) -> float:
    """Return how far two results of about `size` may be apart, each of which went through `count` roundings.

    n roundings in a row change a result by up to n u / (1 - n u) of it (Higham, Accuracy and Stability, lemma 3.1).
    """
    return 2 * count * UNIT / (1 - count * UNIT) * size


def sum_bound(terms: int, *, size: float = 1.0) -> float:
    """Return how far two orders of a sum of products may be apart whose result is about `size`.

    Each side adds in blocks: a rounding per level of a tree of the terms. Terms of random sign have a sum sqrt(terms)
    times smaller than the sum of their magnitudes, which is what roundings are relative to.
    """
    return 2 * UNIT * math.log2(terms) * math.sqrt(terms) * size


def encoder_bound(model: ModelConfig, *, size: float = 1.0, length: int = 0) -> float:
    """Return how far two evaluations of an encoder and a head may be apart, in outputs of about `size`.

    A layer's norm brings its output, and the errors that came in, to size 1; its sums add theirs. Probabilities and
    normalized vectors move by no more than what they are computed from. `length` is that of the sequences, where it is
    not that of the position embeddings.
    """
    terms = max(model.intermediate_size, length or model.max_position_embeddings)
    return (model.num_hidden_layers * SUMS_A_LAYER + 1) * sum_bound(terms, size=size)


def huggingface_bound(model: ModelConfig, *, size: float = 1.0, length: int = 0) -> float:
    """Return how far outputs and gradients, of about `size`, may be from HuggingFace's: what is promised, or less."""
    return min(PROMISED, encoder_bound(model, length=length)) * size


def gradient_bound(model: ModelConfig, *, tokens: int, length: int = 0) -> float:
    """Return how far two gradients of a loss over `tokens` may be apart, relative to the largest value of each.

    A matmul has two on the way back, and what came in from the way forward; then a parameter's gradient is a sum over
    tokens, and that of the last states one over the vocabulary.
    """
    return 3 * encoder_bound(model, length=length) + sum_bound(tokens) + sum_bound(model.vocab_size)


def norm_bound(width: int, *, tokens: int) -> float:
    """Return how far a LayerNorm and its gradients may be apart, relative to the largest value of each.

    Mean and mean square on the way forward, two sums more on the way back, and one over tokens for scale and bias.
    """
    return 4 * sum_bound(width) + sum_bound(tokens)


def lstm_bound(terms: int, *, steps: int, layers: int) -> float:
    """Return how far the states of an LSTM may be apart: each step rounds its sums, and the state carries all of it."""
    return steps * layers * sum_bound(terms, size=2.0)


def cross_entropy_bound(classes: int, *, largest: float) -> float:
    """Return how far a cross-entropy may be apart, and a probability relative to itself, with logits up to `largest`.

    The sum of exponentials is relatively off by its order and by what an exp is. A logarithm brings that down to an
    absolute error, rounds itself, and so do the maximum taken off, the label's logit and their difference: all of them
    relative to numbers as large as the logits, or as the logarithm of the number of classes.
    """
    return sum_bound(classes) + rounded(FUNCTION) + rounded(FUNCTION + 3, size=max(largest, math.log(classes)))


def divergence_bound(classes: int, *, largest: float, temperature: float) -> float:
    """Return how far a divergence may be apart: T^2 times a mean, by probabilities, of differences of their logarithms.

    Each logarithm is off as a cross-entropy is, and so, relatively, is the probability by which it is weighed.
    """
    scaled = largest / temperature
    return temperature**2 * (2 + 2 * scaled) * cross_entropy_bound(classes, largest=scaled)


def cosine_bound(width: int) -> float:
    """Return how far a cosine may be apart: a product of vectors and two norms, each a sum, then root and quotient."""
    return 3 * sum_bound(width) + rounded(4)


def contrast_bound(width: int, *, texts: int, temperature: float) -> float:
    """Return how far a contrastive loss may be apart: cosines are its logits, the label's and all others."""
    logits = 2 * cosine_bound(width) / temperature
    return logits + cross_entropy_bound(texts, largest=1 / temperature)


def update_bound(steps: int, *, rate: float, size: float) -> float:
    """Return how far parameters of about `size` may be apart after so many updates of Adam's kind.

    A parameter is rounded once a step. An update has the roundings of its own step, and the moments carry those of the
    steps before it, 7 of each.
    """
    return rounded(steps, size=size) + rounded(steps * (ROUNDINGS_AN_UPDATE + 7 * steps), size=UPDATE_SIZE * rate)


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


def attention_bounds(arrays: Sequence[jax.Array], *, mask: AttentionMask, rate: float) -> list[np.ndarray]:
    """Return how far the output of attention and each gradient may be apart, number for number.

    A probability is off, relatively, by as much as its score is absolutely: a rounding per term of the score. Every sum
    on the way (of scores, of weights, over tokens twice, over rows) adds a rounding per level of a tree of its terms;
    summed in another order, or in wider vectors, it has others. Both sides may be off by as much.
    """
    sizes, score = attention_magnitudes(arrays, mask=mask, rate=rate)
    levels = 5 * math.log2(max(arrays[0].shape))
    return [2 * UNIT * (score + levels) * size for size in sizes]


def assert_attention_rounded_alike(
    actual: Sequence[jax.Array],
    expected: Sequence[jax.Array],
    *,
    arrays: Sequence[jax.Array],
    mask: AttentionMask,
    rate: float,
) -> None:
    """Compare output and gradients from two implementations, given `arrays`: both are right within rounding."""
    bounds = attention_bounds(arrays, mask=mask, rate=rate)
    for number, (first, second, bound) in enumerate(zip(actual, expected, bounds, strict=True)):
        difference = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64))
        assert (difference <= bound).all(), number
