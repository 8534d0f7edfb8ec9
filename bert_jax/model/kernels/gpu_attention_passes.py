"""The passes of the GPU attention kernels: the computation of one program in registers.

A pass gets its arrays by name: tokens as `[tokens, K]` of one head, `bits` as `[heads, T / 32, tokens]`. Scores and
`lse` are to base 2, because the exponential instruction of GPUs is.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from bert_jax.model import dropout

BITS = 32  # keys per word
# The score of a masked key: far below all others, but float32 still distinguishes it from itself plus log2(T), the
# log-sum-exp of a query without allowed keys.
_MASKED = -(2.0**20)
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The sizes of a pass: queries and keys per block, warps per program, stages of the pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static parameters: T, head size, dropout rate, direction, and the blocks of the three passes."""

    length: int
    head_size: int
    rate: float
    left_to_right: bool
    forward: Blocks
    dkv: Blocks
    dq: Blocks

    @property
    def is_one_block(self) -> bool:
        """Return whether all keys fit in one block, so that one backward kernel computes all gradients."""
        return self.dkv.keys == self.length

    @property
    def scale(self) -> float:
        """Return 1 / sqrt(K)."""
        return self.head_size**-0.5

    @property
    def keep_scale(self) -> float:
        """Return the factor of a kept probability."""
        return 1 / (1 - self.rate)


def draw(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write which probabilities are kept, for a block of queries and the heads that share words.

    Of the 32 keys of a word, key k has bit 31 - k, so shifting the word left by k moves its bit to the sign.
    """
    group_size = refs.bits.shape[0]
    head, shared_by = refs.first_head[0] + pl.program_id(1) * group_size, jnp.int32(dropout.SHARED_BY)
    group, within = jax.lax.div(head, shared_by), jax.lax.rem(head, shared_by)
    first_query = pl.program_id(2) * blocks.queries
    query = (first_query + jnp.arange(blocks.queries, dtype=jnp.int32)).astype(jnp.uint32)[:, None]
    bit = jnp.arange(BITS, dtype=jnp.int32)
    flags = jnp.left_shift(jnp.int32(1), BITS - 1 - bit)[None, :]

    def body(number: Any, _: None) -> None:
        key = (number * BITS + bit).astype(jnp.uint32)[None, :]
        counter = dropout.word_counter((group, query, key), sizes=(1, plan.length, plan.length))
        words = dropout.mix(counter ^ refs.seeds[0])
        for slot in range(group_size):
            factor = dropout.multiplier(within + slot)
            keep = dropout.is_kept(words * factor, rate=plan.rate)
            refs.bits[slot, number, :] = jnp.where(keep, flags, 0).sum(1)

    jax.lax.fori_loop(0, plan.length // BITS, body, None)


def forward(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write the output of a block of queries, and `lse`, the log-sum-exp (base 2) of their scores."""
    queries = pl.ds(pl.program_id(2) * blocks.queries, blocks.queries)
    query = refs.q[...] + refs.q_bias[...][None, :]

    def body(number: Any, carry: Any) -> Any:
        total, max_score, prob_sum, kept_sum = carry
        keys = pl.ds(number * blocks.keys, blocks.keys)
        scores = _dot(query, refs.k[keys, :], 1, 1) * (plan.scale * _LOG2_E)
        scores = jnp.where(_allowed(refs, queries, keys, query_axis=0, plan=plan), scores, _MASKED)
        new_max = jnp.maximum(max_score, scores.max(1))
        probs = jnp.exp2(scores - new_max[:, None])
        rescale = jnp.exp2(max_score - new_max)
        prob_sum = prob_sum * rescale + probs.sum(1)
        if plan.rate:
            probs = jnp.where(_keep(refs, queries, keys, query_axis=0), probs, 0.0)
            kept_sum = kept_sum * rescale + probs.sum(1)
        total = total * rescale[:, None] + _dot(probs.astype(refs.q.dtype), refs.v[keys, :], 1, 0)
        return total, new_max, prob_sum, kept_sum

    zeros = jnp.zeros((blocks.queries,), jnp.float32)
    start = (jnp.zeros((blocks.queries, plan.head_size), jnp.float32), zeros + _MASKED, zeros, zeros)
    total, max_score, prob_sum, kept_sum = jax.lax.fori_loop(0, plan.length // blocks.keys, body, start)
    # The value bias is weighted by the sum of the kept probabilities.
    total += (kept_sum if plan.rate else prob_sum)[:, None] * refs.v_bias[...].astype(jnp.float32)[None, :]
    refs.out[...] = (total * (plan.keep_scale / prob_sum)[:, None]).astype(refs.out.dtype)
    refs.lse[...] = max_score + jnp.log2(prob_sum)


def backward_dkv(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write dK and dV of a block of keys, and dQ if this block has all keys.

    Scores are computed transposed, keys by queries, so that both products with them need no transposition.
    """
    keys = pl.ds(pl.program_id(2) * blocks.keys, blocks.keys)
    key, value = refs.k[...], refs.v[...] + refs.v_bias[...][None, :]
    dtype = key.dtype

    def body(number: Any, carry: Any) -> Any:
        d_key, d_value, query_total = carry
        queries = pl.ds(number * blocks.queries, blocks.queries)
        query, d_out = refs.q[queries, :] + refs.q_bias[...][None, :], refs.d_out[queries, :]
        scores = _dot(key, query, 1, 1) * (plan.scale * _LOG2_E)
        scores = jnp.where(_allowed(refs, queries, keys, query_axis=1, plan=plan), scores, _MASKED)
        probs = dropped_probs = jnp.exp2(scores - refs.lse[queries][None, :])
        d_probs = _dot(value, d_out, 1, 1) * plan.keep_scale
        if plan.rate:
            keep = _keep(refs, queries, keys, query_axis=1)
            dropped_probs, d_probs = jnp.where(keep, probs, 0.0), jnp.where(keep, d_probs, 0.0)
        d_scores = (probs * (d_probs - refs.delta[queries][None, :])).astype(dtype)
        if plan.is_one_block:
            d_query = _dot(d_scores, key, 0, 0) * plan.scale
            refs.d_q[queries, :] = d_query.astype(dtype)
            query_total += d_query.sum(0)
        return (
            d_key + _dot(d_scores, query, 1, 0),
            d_value + _dot(dropped_probs.astype(dtype), d_out, 1, 0),
            query_total,
        )

    zeros = jnp.zeros((blocks.keys, plan.head_size), jnp.float32)
    start = (zeros, zeros, jnp.zeros((plan.head_size,), jnp.float32))
    d_key, d_value, query_total = jax.lax.fori_loop(0, plan.length // blocks.queries, body, start)
    refs.d_k[...] = (d_key * plan.scale).astype(dtype)
    refs.d_v[...] = (d_value * plan.keep_scale).astype(dtype)
    refs.v_total[...] = d_value.sum(0) * plan.keep_scale
    if plan.is_one_block:
        refs.q_total[...] = query_total


def backward_dq(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write dQ of a block of queries."""
    queries = pl.ds(pl.program_id(2) * blocks.queries, blocks.queries)
    query, d_out = refs.q[...] + refs.q_bias[...][None, :], refs.d_out[...]
    lse, delta = refs.lse[...][:, None], refs.delta[...][:, None]
    # The value bias adds the same number to dP for all keys of a query.
    offset = (d_out.astype(jnp.float32) * refs.v_bias[...].astype(jnp.float32)[None, :]).sum(1)[:, None]

    def body(number: Any, d_query: Array) -> Array:
        keys = pl.ds(number * blocks.keys, blocks.keys)
        key = refs.k[keys, :]
        scores = _dot(query, key, 1, 1) * (plan.scale * _LOG2_E)
        scores = jnp.where(_allowed(refs, queries, keys, query_axis=0, plan=plan), scores, _MASKED)
        probs = jnp.exp2(scores - lse)
        d_probs = (_dot(d_out, refs.v[keys, :], 1, 1) + offset) * plan.keep_scale
        if plan.rate:
            d_probs = jnp.where(_keep(refs, queries, keys, query_axis=0), d_probs, 0.0)
        d_scores = (probs * (d_probs - delta)).astype(key.dtype)
        return d_query + _dot(d_scores, key, 1, 0)

    zeros = jnp.zeros((blocks.queries, plan.head_size), jnp.float32)
    total = jax.lax.fori_loop(0, plan.length // blocks.keys, body, zeros) * plan.scale
    refs.d_q[...] = total.astype(refs.d_q.dtype)
    refs.q_total[...] = total.sum(0)


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    contraction = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contraction, preferred_element_type=jnp.float32)


def _allowed(refs: Any, queries: Any, keys: Any, *, query_axis: int, plan: Tiling) -> Array:
    """Return whether each query of a block may attend to each key (`AttentionMask.dense`)."""

    def of(name: str) -> tuple[Array, Array]:
        row = getattr(refs, name)
        return jnp.expand_dims(row[queries], 1 - query_axis), jnp.expand_dims(row[keys], query_axis)

    query, key = of("segments")
    allowed = (key > 0) & ((query == key) | (query == 0))
    if plan.left_to_right:
        query, key = of("positions")
        allowed &= query >= key
    return allowed


def _keep(refs: Any, queries: Any, keys: Any, *, query_axis: int) -> Array:
    """Return which probabilities of a block are kept, from the bits of its words."""
    key = jnp.expand_dims(jnp.arange(keys.size, dtype=jnp.int32), query_axis)
    first = keys.start // BITS
    words = jnp.expand_dims(refs.bits[0, first, queries], 1 - query_axis)
    for number in range(1, keys.size // BITS):
        next_words = jnp.expand_dims(refs.bits[0, first + number, queries], 1 - query_axis)
        words = jnp.where(key >= number * BITS, next_words, words)
    return jnp.left_shift(words, key & (BITS - 1)) < 0
