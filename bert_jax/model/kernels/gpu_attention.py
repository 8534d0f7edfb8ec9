"""Attention with dropout in GPU kernels (Pallas, through Triton), forward and backward: no array of T x T in memory.

FlashAttention-2 (Dao 2023): a program holds a block of queries (forward, gradient of the queries) or of keys (gradients
of keys and values) of one head and walks over the others; the backward pass computes the probabilities anew from the
log-sum-exp of each query. Dropped is by the hash of `attention_dropout`, which every implementation shares; cuDNN's own
dropout would take its masks from a generator with a seed fixed in the program. Rows of one block of keys (T = 128, the
length of most of pre-training) need one backward kernel: all scores of a query are at hand, so its gradient is too.

Heads are read and written where the projections left them, `[B, T, N * K]`: nothing is transposed in memory.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int, UInt32

from bert_jax.model import attention_dropout

_HEAD_SIZES = (16, 32, 64, 128)  # what a tensor core's tile and a block's registers take
_MASKED = -1e30
_LOG2_E = math.log2(math.e)  # a GPU has exp2 in hardware

_Three = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Hold the sizes of a pass: queries and keys of a block, warps of a program, stages of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Plan:
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


def is_supported(*, length: int, head_size: int, dtype: Any) -> bool:
    """Say whether the kernels take these shapes: half precision, whole blocks of 64."""
    return dtype == jnp.bfloat16 and head_size in _HEAD_SIZES and length % 64 == 0 and length > 0


def make_plan(*, length: int, head_size: int, rate: float, left_to_right: bool) -> Plan:
    """Return the blocks that were fastest on an H100 (benchmarks/RESULTS.md)."""
    wide = 128 if length % 128 == 0 else 64
    return Plan(
        length=length,
        head_size=head_size,
        rate=rate,
        left_to_right=left_to_right,
        forward=Blocks(queries=wide, keys=64, warps=wide // 16, stages=2),
        to_keys=Blocks(queries=64, keys=wide, warps=wide // 16, stages=2),
        to_queries=Blocks(queries=wide, keys=64, warps=wide // 16, stages=2),
    )


def gpu_attention(
    qkv: tuple[Float[Array, "B T N K"], Float[Array, "B T N K"], Float[Array, "B T N K"]],
    *,
    segment_ids: Int[Array, "B T"],
    position_ids: Int[Array, "B T"],
    seeds: UInt32[Array, " B"],
    first_head: Int[Array, ""],
    plan: Plan,
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Attend within segments, dropping probabilities at `plan.rate`.

    `first_head` is the number of the first head among those of all devices. `interpret` runs the kernels' source on any
    backend, slowly.
    """
    batch, length, heads, size = qkv[0].shape
    flat = tuple(array.reshape(batch, length, heads * size) for array in qkv)
    places = (seeds, first_head.reshape(1), segment_ids, position_ids)
    out: Array = _attend((plan, interpret), flat, places)
    return out.reshape(qkv[0].shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: tuple[Plan, bool], qkv: _Three, places: tuple[Array, ...]) -> Array:
    return _forward(static, qkv, places)[0]


def _forward(static: tuple[Plan, bool], qkv: _Three, places: tuple[Array, ...]) -> tuple[Array, Any]:
    plan, query = static[0], qkv[0]
    batch, length, width = query.shape
    level = jax.ShapeDtypeStruct((batch, width // plan.head_size, length), jnp.float32)
    out, lse = _call(
        _forward_pass,
        static,
        blocks=plan.forward,
        grid_over=plan.forward.queries,
        inputs=(*places, *qkv),
        tiled=("q",),
        outputs={"out": query, "lse": level},
    )
    return out, (qkv, out, lse, places)


def _backward(static: tuple[Plan, bool], kept: Any, d_out: Array) -> tuple[Any, ...]:
    (query, key, value), out, lse, places = kept
    plan = static[0]
    by_head = (*query.shape[:2], -1, plan.head_size)
    products = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    delta = products.reshape(by_head).sum(-1).swapaxes(1, 2)
    inputs = (*places, query, key, value, d_out, lse, delta)
    to_key = {"d_k": key, "d_v": value}
    results = _call(
        _to_keys_pass,
        static,
        blocks=plan.to_keys,
        grid_over=plan.to_keys.keys,
        inputs=inputs,
        tiled=("k", "v"),
        outputs=to_key | ({"d_q": query} if plan.is_one_block else {}),
    )
    d_key, d_value = results[:2]
    if plan.is_one_block:
        d_query = results[2]
    else:
        (d_query,) = _call(
            _to_queries_pass,
            static,
            blocks=plan.to_queries,
            grid_over=plan.to_queries.queries,
            inputs=inputs,
            tiled=("q", "d_out", "lse", "delta"),
            outputs={"d_q": query},
        )
    no_gradients = tuple(np.zeros(place.shape, jax.dtypes.float0) for place in places)
    return (d_query, d_key, d_value), no_gradients


_attend.defvjp(_forward, _backward)

_INPUTS = ("seeds", "first_head", "segments", "positions", "q", "k", "v", "d_out", "lse", "delta")
_TILED_OUTPUTS = ("out", "lse", "d_k", "d_v")


def _call(
    kernel: Any,
    static: tuple[Plan, bool],
    *,
    blocks: Blocks,
    grid_over: int,
    inputs: tuple[Array, ...],
    tiled: tuple[str, ...],
    outputs: dict[str, Any],
) -> tuple[Array, ...]:
    """Run a pass over the grid (row, head, block of `grid_over` tokens).

    A program sees one block of the inputs named in `tiled`, and of the others the whole row of its head.
    """
    plan, interpret = static
    batch, length, width = inputs[4].shape

    def spec(name: str, array: Any, is_tiled: bool) -> pl.BlockSpec:
        tokens = grid_over if is_tiled else length
        if name == "seeds":
            return pl.BlockSpec((1,), lambda b, h, i: (b,))
        if name == "first_head":
            return pl.BlockSpec((1,), lambda b, h, i: (0,))
        if array.ndim == 2:
            return pl.BlockSpec((None, length), lambda b, h, i: (b, 0))
        if name in ("lse", "delta"):
            return pl.BlockSpec((None, None, tokens), lambda b, h, i: (b, h, i if is_tiled else 0))
        return pl.BlockSpec((None, tokens, plan.head_size), lambda b, h, i: (b, i if is_tiled else 0, h))

    return pl.pallas_call(
        functools.partial(kernel, plan=plan, blocks=blocks),
        grid=(batch, width // plan.head_size, length // grid_over),
        in_specs=[spec(name, array, name in tiled) for name, array in zip(_INPUTS, inputs, strict=False)],
        out_specs=[
            spec(name, array, name in _TILED_OUTPUTS or kernel is _to_queries_pass) for name, array in outputs.items()
        ],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs.values()],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=f"gpu_attention{kernel.__name__}",
    )(*inputs)


def _forward_pass(
    seeds: Any,
    first_head: Any,
    segments: Any,
    positions: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    plan: Plan,
    blocks: Blocks,
) -> None:
    """Write the output of a block of queries, and the log-sum-exp (base 2) of their scores."""
    queries = pl.ds(pl.program_id(2) * blocks.queries, blocks.queries)
    query, query_segments = q[...], segments[queries][:, None]
    drop = _Dropping.create(seeds, first_head, plan=plan)

    def body(number: Any, carry: _Three) -> _Three:
        total, top, norm = carry
        keys = pl.ds(number * blocks.keys, blocks.keys)
        scores = _dot(query, k[keys, :], 1, 1) * (plan.scale * _LOG2_E)
        key_places, query_places = positions[keys][None, :], positions[queries][:, None]
        allowed = _allowed(query_segments, segments[keys][None, :], query_places, key_places, plan=plan)
        scores = jnp.where(allowed, scores, _MASKED)
        new_top = jnp.maximum(top, scores.max(1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrunk = jnp.exp2(top - new_top)
        norm = norm * shrunk + weights.sum(1)
        if drop is not None:
            weights = jnp.where(drop.keep(_span(queries)[:, None], _span(keys)[None, :]), weights, 0.0)
        total = total * shrunk[:, None] + _dot(weights.astype(q.dtype), v[keys, :], 1, 0)
        return total, new_top, norm

    start = (
        jnp.zeros((blocks.queries, plan.head_size), jnp.float32),
        jnp.full((blocks.queries,), _MASKED, jnp.float32),
        jnp.zeros((blocks.queries,), jnp.float32),
    )
    total, top, norm = jax.lax.fori_loop(0, plan.length // blocks.keys, body, start)
    out[...] = (total / (norm * (1 - plan.rate))[:, None]).astype(out.dtype)
    lse[...] = top + jnp.log2(norm)


def _to_keys_pass(
    seeds: Any,
    first_head: Any,
    segments: Any,
    positions: Any,
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    lse: Any,
    delta: Any,
    d_k: Any,
    d_v: Any,
    *d_q: Any,
    plan: Plan,
    blocks: Blocks,
) -> None:
    """Write the gradients of a block of keys and values, and of the queries where the block is all there is.

    Scores are kept transposed, keys by queries, so that both products with them need no transposition.
    """
    keys = pl.ds(pl.program_id(2) * blocks.keys, blocks.keys)
    key, value, key_segments = k[...], v[...], segments[keys][:, None]
    drop = _Dropping.create(seeds, first_head, plan=plan)

    def body(number: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        to_key, to_value = carry
        queries = pl.ds(number * blocks.queries, blocks.queries)
        query, outer = q[queries, :], d_out[queries, :]
        scores = _dot(key, query, 1, 1) * (plan.scale * _LOG2_E)
        query_places, key_places = positions[queries][None, :], positions[keys][:, None]
        allowed = _allowed(segments[queries][None, :], key_segments, query_places, key_places, plan=plan)
        weights = kept = jnp.exp2(jnp.where(allowed, scores, _MASKED) - lse[queries][None, :])
        d_weights = _dot(value, outer, 1, 1)
        if drop is not None:
            keep = drop.keep(_span(queries)[None, :], _span(keys)[:, None])
            kept = jnp.where(keep, weights, 0.0)
            d_weights = jnp.where(keep, d_weights * (1 / (1 - plan.rate)), 0.0)
        d_scores = (weights * (d_weights - delta[queries][None, :])).astype(q.dtype)
        if plan.is_one_block:
            d_query = _dot(d_scores, key, 0, 0) * plan.scale
            d_q[0][queries, :] = d_query.astype(q.dtype)
        return to_key + _dot(d_scores, query, 1, 0), to_value + _dot(kept.astype(q.dtype), outer, 1, 0)

    zeros = jnp.zeros((blocks.keys, plan.head_size), jnp.float32)
    to_key, to_value = jax.lax.fori_loop(0, plan.length // blocks.queries, body, (zeros, zeros))
    d_k[...] = (to_key * plan.scale).astype(d_k.dtype)
    d_v[...] = (to_value * (1 / (1 - plan.rate))).astype(d_v.dtype)


def _to_queries_pass(
    seeds: Any,
    first_head: Any,
    segments: Any,
    positions: Any,
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    lse: Any,
    delta: Any,
    d_q: Any,
    *,
    plan: Plan,
    blocks: Blocks,
) -> None:
    """Write the gradient of a block of queries."""
    queries = pl.ds(pl.program_id(2) * blocks.queries, blocks.queries)
    query, outer, level, mean = q[...], d_out[...], lse[...][:, None], delta[...][:, None]
    query_segments = segments[queries][:, None]
    drop = _Dropping.create(seeds, first_head, plan=plan)

    def body(number: Any, to_query: Array) -> Array:
        keys = pl.ds(number * blocks.keys, blocks.keys)
        key = k[keys, :]
        scores = _dot(query, key, 1, 1) * (plan.scale * _LOG2_E)
        key_places, query_places = positions[keys][None, :], positions[queries][:, None]
        allowed = _allowed(query_segments, segments[keys][None, :], query_places, key_places, plan=plan)
        weights = jnp.exp2(jnp.where(allowed, scores, _MASKED) - level)
        d_weights = _dot(outer, v[keys, :], 1, 1)
        if drop is not None:
            keep = drop.keep(_span(queries)[:, None], _span(keys)[None, :])
            d_weights = jnp.where(keep, d_weights * (1 / (1 - plan.rate)), 0.0)
        d_scores = (weights * (d_weights - mean)).astype(q.dtype)
        return to_query + _dot(d_scores, key, 1, 0)

    zeros = jnp.zeros((blocks.queries, plan.head_size), jnp.float32)
    total = jax.lax.fori_loop(0, plan.length // blocks.keys, body, zeros)
    d_q[...] = (total * plan.scale).astype(d_q.dtype)


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    contraction = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contraction, preferred_element_type=jnp.float32)


def _span(block: Any) -> Array:
    """Return the places of a block."""
    return block.start + jnp.arange(block.size)


def _allowed(query: Array, key: Array, query_place: Array, key_place: Array, *, plan: Plan) -> Array:
    """Say which query may look at which key, from segments and positions that broadcast (`AttentionMask.dense`)."""
    allowed = (key > 0) & ((query == key) | (query == 0))
    return allowed & (query_place >= key_place) if plan.left_to_right else allowed


@dataclasses.dataclass(frozen=True)
class _Dropping:
    """Hold what decides which probabilities of a row's head stay."""

    seed: Any
    group: Any
    factor: Any
    plan: Plan

    @classmethod
    def create(cls, seeds: Any, first_head: Any, *, plan: Plan) -> "_Dropping | None":
        """Return it for the program's row and head, or None where nothing is dropped."""
        if not plan.rate:
            return None
        head, shared_by = first_head[0] + pl.program_id(1), jnp.int32(attention_dropout.HEADS_PER_WORD)
        factor = attention_dropout.multiplier(jax.lax.rem(head, shared_by))
        return cls(seed=seeds[0], group=jax.lax.div(head, shared_by), factor=factor, plan=plan)

    def keep(self, query: Array, key: Array) -> Array:
        """Return which stay, for places of queries and keys that broadcast."""
        query, key = query.astype(jnp.uint32), key.astype(jnp.uint32)
        place = attention_dropout.word_place(self.group, query=query, key=key, length=self.plan.length)
        words = attention_dropout.mix(place ^ self.seed)
        return attention_dropout.kept(words * self.factor, rate=self.plan.rate)
