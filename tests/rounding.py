"""How far two float32 evaluations of one formula may be apart: bounds from the number of terms and of roundings."""

import math

from bert_jax.config import ModelConfig

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
