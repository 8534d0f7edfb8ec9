"""The passes of the GPU's attention kernels: what one program computes in registers.

A pass gets its arrays by name: tokens as `[tokens, K]` of one head, `bits` as `[heads, T / 32, tokens]`. Scores are
taken to base 2, which a GPU's exponential is.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from bert_jax.model import dropout

BITS = 32  # keys of a word
# Of a score that is not to be seen: far below any, and float32 still tells it from itself plus log2(T), which is the
# log-sum-exp of a query that sees nothing.
_MASKED = -(2.0**20)
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Hold the sizes of a pass: queries and keys of a block, warps of a program, stages of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Hold what is static: T, head size, dropout rate, direction, and the blocks of the three passes."""

    length: int
    head_size: int
    rate: float
    left_to_right: bool
    forward: Blocks
    to_keys: Blocks
    to_queries: Blocks

    @property
    def is_one_block(self) -> bool:
        """Say whether all keys fit in one block, so that one backward kernel does."""
        return self.to_keys.keys == self.length

    @property
    def scale(self) -> float:
        """Return 1 / sqrt(K)."""
        return self.head_size**-0.5

    @property
    def kept_scale(self) -> float:
        """Return what a kept probability is multiplied with."""
        return 1 / (1 - self.rate)


def draw(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write which probabilities stay, for a block of queries of the heads that share words.

    Key k of a word's 32 has bit 31 - k, so that shifting the word by k leaves its bit in the sign.
    """
    together = refs.bits.shape[0]
    head, shared_by = refs.first_head[0] + pl.program_id(1) * together, jnp.int32(dropout.SHARED_BY)
    group, within = jax.lax.div(head, shared_by), jax.lax.rem(head, shared_by)
    first_query = pl.program_id(2) * blocks.queries
    query = (first_query + jnp.arange(blocks.queries, dtype=jnp.int32)).astype(jnp.uint32)[:, None]
    bit = jnp.arange(BITS, dtype=jnp.int32)
    flags = jnp.left_shift(jnp.int32(1), BITS - 1 - bit)[None, :]

    def body(number: Any, _: None) -> None:
        key = (number * BITS + bit).astype(jnp.uint32)[None, :]
        place = dropout.word_place((group, query, key), sizes=(1, plan.length, plan.length))
        words = dropout.mix(place ^ refs.seeds[0])
        for slot in range(together):
            factor = dropout.multiplier(within + slot)
            keep = dropout.kept(words * factor, rate=plan.rate)
            refs.bits[slot, number, :] = jnp.where(keep, flags, 0).sum(1)

    jax.lax.fori_loop(0, plan.length // BITS, body, None)


def forward(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write the output of a block of queries, and the log-sum-exp (base 2) of their scores."""
    queries = pl.ds(pl.program_id(2) * blocks.queries, blocks.queries)
    query = refs.q[...] + refs.q_bias[...][None, :]

    def body(number: Any, carry: Any) -> Any:
        total, top, norm, kept_norm = carry
        keys = pl.ds(number * blocks.keys, blocks.keys)
        scores = _dot(query, refs.k[keys, :], 1, 1) * (plan.scale * _LOG2_E)
        scores = jnp.where(_allowed(refs, queries, keys, query_axis=0, plan=plan), scores, _MASKED)
        new_top = jnp.maximum(top, scores.max(1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrunk = jnp.exp2(top - new_top)
        norm = norm * shrunk + weights.sum(1)
        if plan.rate:
            weights = jnp.where(_keep(refs, queries, keys, query_axis=0), weights, 0.0)
            kept_norm = kept_norm * shrunk + weights.sum(1)
        total = total * shrunk[:, None] + _dot(weights.astype(refs.q.dtype), refs.v[keys, :], 1, 0)
        return total, new_top, norm, kept_norm

    zeros = jnp.zeros((blocks.queries,), jnp.float32)
    start = (jnp.zeros((blocks.queries, plan.head_size), jnp.float32), zeros + _MASKED, zeros, zeros)
    total, top, norm, kept_norm = jax.lax.fori_loop(0, plan.length // blocks.keys, body, start)
    # The values' bias comes in as often as the kept probabilities sum up to.
    total += (kept_norm if plan.rate else norm)[:, None] * refs.v_bias[...].astype(jnp.float32)[None, :]
    refs.out[...] = (total * (plan.kept_scale / norm)[:, None]).astype(refs.out.dtype)
    refs.lse[...] = top + jnp.log2(norm)


def to_keys(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write the gradients of a block of keys and values, and of the queries where the block is all there is.

    Scores are kept transposed, keys by queries, so that both products with them need no transposition.
    """
    keys = pl.ds(pl.program_id(2) * blocks.keys, blocks.keys)
    key, value = refs.k[...], refs.v[...] + refs.v_bias[...][None, :]
    dtype = key.dtype

    def body(number: Any, carry: Any) -> Any:
        to_key, to_value, query_total = carry
        queries = pl.ds(number * blocks.queries, blocks.queries)
        query, outer = refs.q[queries, :] + refs.q_bias[...][None, :], refs.d_out[queries, :]
        scores = _dot(key, query, 1, 1) * (plan.scale * _LOG2_E)
        scores = jnp.where(_allowed(refs, queries, keys, query_axis=1, plan=plan), scores, _MASKED)
        weights = kept = jnp.exp2(scores - refs.lse[queries][None, :])
        d_weights = _dot(value, outer, 1, 1) * plan.kept_scale
        if plan.rate:
            keep = _keep(refs, queries, keys, query_axis=1)
            kept, d_weights = jnp.where(keep, weights, 0.0), jnp.where(keep, d_weights, 0.0)
        d_scores = (weights * (d_weights - refs.delta[queries][None, :])).astype(dtype)
        if plan.is_one_block:
            d_query = _dot(d_scores, key, 0, 0) * plan.scale
            refs.d_q[queries, :] = d_query.astype(dtype)
            query_total += d_query.sum(0)
        return to_key + _dot(d_scores, query, 1, 0), to_value + _dot(kept.astype(dtype), outer, 1, 0), query_total

    zeros = jnp.zeros((blocks.keys, plan.head_size), jnp.float32)
    start = (zeros, zeros, jnp.zeros((plan.head_size,), jnp.float32))
    to_key, to_value, query_total = jax.lax.fori_loop(0, plan.length // blocks.queries, body, start)
    refs.d_k[...] = (to_key * plan.scale).astype(dtype)
    refs.d_v[...] = (to_value * plan.kept_scale).astype(dtype)
    refs.v_total[...] = to_value.sum(0) * plan.kept_scale
    if plan.is_one_block:
        refs.q_total[...] = query_total


def to_queries(refs: Any, *, plan: Tiling, blocks: Blocks) -> None:
    """Write the gradient of a block of queries."""
    queries = pl.ds(pl.program_id(2) * blocks.queries, blocks.queries)
    query, outer = refs.q[...] + refs.q_bias[...][None, :], refs.d_out[...]
    level, mean = refs.lse[...][:, None], refs.delta[...][:, None]
    # The values' bias adds to all derivatives of a query what it contributes.
    offset = (outer.astype(jnp.float32) * refs.v_bias[...].astype(jnp.float32)[None, :]).sum(1)[:, None]

    def body(number: Any, to_query: Array) -> Array:
        keys = pl.ds(number * blocks.keys, blocks.keys)
        key = refs.k[keys, :]
        scores = _dot(query, key, 1, 1) * (plan.scale * _LOG2_E)
        scores = jnp.where(_allowed(refs, queries, keys, query_axis=0, plan=plan), scores, _MASKED)
        weights = jnp.exp2(scores - level)
        d_weights = (_dot(outer, refs.v[keys, :], 1, 1) + offset) * plan.kept_scale
        if plan.rate:
            d_weights = jnp.where(_keep(refs, queries, keys, query_axis=0), d_weights, 0.0)
        d_scores = (weights * (d_weights - mean)).astype(key.dtype)
        return to_query + _dot(d_scores, key, 1, 0)

    zeros = jnp.zeros((blocks.queries, plan.head_size), jnp.float32)
    total = jax.lax.fori_loop(0, plan.length // blocks.keys, body, zeros) * plan.scale
    refs.d_q[...] = total.astype(refs.d_q.dtype)
    refs.q_total[...] = total.sum(0)


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    contraction = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contraction, preferred_element_type=jnp.float32)


def _allowed(refs: Any, queries: Any, keys: Any, *, query_axis: int, plan: Tiling) -> Array:
    """Say which query of a block may look at which key (`AttentionMask.dense`)."""

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
    """Return which probabilities of a block stay, from the bits of its words."""
    key = jnp.expand_dims(jnp.arange(keys.size, dtype=jnp.int32), query_axis)
    first = keys.start // BITS
    words = jnp.expand_dims(refs.bits[0, first, queries], 1 - query_axis)
    for number in range(1, keys.size // BITS):
        following = jnp.expand_dims(refs.bits[0, first + number, queries], 1 - query_axis)
        words = jnp.where(key >= number * BITS, following, words)
    return jnp.left_shift(words, key & (BITS - 1)) < 0
