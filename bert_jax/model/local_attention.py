"""Attention to a window, computed block by block: time and memory grow with the length, not with its square.

A block of 2 w queries attends to the 4 w keys from w before it to w after it: every key within reach w of its queries.
The result is that of the reference (`attention.py`), dropout included, except for padding, whose output nothing reads.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.model.attention_dropout import AttentionDropout

_CHUNKS = 2  # of w tokens in a block of queries


def is_worthwhile(*, length: int, window: int) -> bool:
    """Return whether blocks have fewer pairs of positions than the whole sequence."""
    return length > 2 * _CHUNKS * window


def local_attention(
    query: Float[Array, "B T N K"],
    *,
    key: Float[Array, "B T N K"],
    value: Float[Array, "B T N K"],
    segment_ids: Int[Array, "B T"],
    window: int,
    left_to_right: bool,
    dropout: AttentionDropout | None,
    heads: Int[Array, " N"],
    masked: float,
) -> Float[Array, "B T N K"]:
    """Return the attention output of each query over the keys of its instance at most `window` positions away.

    `masked` is the score of other keys, `heads` are the global head numbers for `dropout`.
    """
    length, size = query.shape[1], _CHUNKS * window
    blocks = -(-length // size)
    queries = _padded(query, before=0, after=blocks * size - length).reshape(len(query), blocks, size, *query.shape[2:])
    keys, values = (_around(array, blocks=blocks, window=window) for array in (key, value))
    scores = jnp.einsum("BcqNK,BckNK->BcNqk", queries / math.sqrt(query.shape[-1]), keys)
    # Positions in the sequence: [c, q, 1] and [c, 1, k].
    first = size * jnp.arange(blocks, dtype=jnp.int32)[:, None, None]
    at_query = first + jnp.arange(size, dtype=jnp.int32)[None, :, None]
    at_key = first + jnp.arange(-window, size + window, dtype=jnp.int32)[None, None, :]
    own = _padded(segment_ids, before=0, after=blocks * size - length).reshape(len(query), blocks, size, 1)
    others = _around(segment_ids, blocks=blocks, window=window)[:, :, None, :]
    near = (at_key <= at_query) if left_to_right else (at_key <= at_query + window)
    near &= at_key >= at_query - window
    allowed = (others > 0) & (others == own) & near[None]
    scores = jnp.where(allowed[:, :, None], scores.astype(jnp.float32), masked)
    probs = jax.nn.softmax(scores, axis=-1)
    if dropout is not None:
        keep = dropout.keep_pairs(heads, queries=at_query, keys=at_key, length=length)
        probs = jnp.where(keep, probs * (1 / (1 - dropout.rate)), 0)
    out = jnp.einsum("BcNqk,BckNK->BcqNK", probs.astype(query.dtype), values)
    return out.reshape(len(query), blocks * size, *query.shape[2:])[:, :length]


def _padded(array: Array, *, before: int, after: int) -> Array:
    return jnp.pad(array, [(0, 0), (before, after), *[(0, 0)] * (array.ndim - 2)])


def _around(array: Array, *, blocks: int, window: int) -> Array:
    """Return for each block the values from `window` positions before it to `window` after it, zeros outside."""
    length = blocks * _CHUNKS * window
    padded = _padded(array, before=window, after=length - array.shape[1] + window)
    chunks = padded.reshape(len(array), -1, window, *array.shape[2:])
    last = (blocks - 1) * _CHUNKS + 1
    return jnp.concatenate([chunks[:, start : start + last : _CHUNKS] for start in range(_CHUNKS + 2)], axis=2)
