"""Compute attention; the only file that knows a kernel.

Every implementation takes the same arguments and gives the same result within the tolerance of its dtype. `reference`
is the plain form that the others are tested against.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.dropout import Dropout

# Added to a masked score (modeling.py of the original uses -10000, which is not always enough for float32 scores);
# finite, so that a row with no allowed key gives a uniform average and not NaN.
_MASKED = -1e30


def attention_mask(
    segment_ids: Int[Array, "B T"], *, position_ids: Int[Array, "B T"], direction: str
) -> Bool[Array, "B 1 T T"]:
    """Return which key (last axis) each query may look at.

    A query sees the tokens of its own instance, in `left_to_right` only those up to itself (the ablation of Table 5). A
    padding query sees every token, which nobody reads, and which keeps padding equal to HuggingFace's.
    """
    queries, keys = segment_ids[:, None, :, None], segment_ids[:, None, None, :]
    allowed = (keys > 0) & ((queries == keys) | (queries == 0))
    if direction == "left_to_right":
        allowed &= position_ids[:, None, :, None] >= position_ids[:, None, None, :]
    return allowed


def attend(
    query: Float[Array, "B T N K"],
    *,
    key: Float[Array, "B T N K"],
    value: Float[Array, "B T N K"],
    mask: Bool[Array, "B 1 T T"],
    dropout: Dropout | None,
    rate: float,
    site: int,
    implementation: str,
) -> Float[Array, "B T N K"]:
    """Attend from each query to the values, by the implementation that the config names."""
    del implementation  # one implementation so far: "auto" is "reference"
    scores = jnp.einsum("BqNK,BkNK->BNqk", query / math.sqrt(query.shape[-1]), key)
    scores = jnp.where(mask, scores.astype(jnp.float32), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    if dropout is not None:
        weights = dropout.apply(weights, rate=rate, site=site)
    return jnp.einsum("BNqk,BkNK->BqNK", weights, value)
