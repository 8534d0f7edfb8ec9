"""The two passes of the fused residual norm: the computation of one grid step in VMEM.

A step has some sequences and tokens, with all features. Its loop processes 64 tokens per iteration, in 4 tiles of 16
that share the dropout's words. The reductions over features of a tile are written before the remaining arithmetic of
the previous tile, so that the compiler fills the gaps of one with the other.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bert_jax.model import dropout

TOKENS = dropout.TOKENS_APART  # per tile: the rows of a bfloat16 register
TILES = dropout.SHARED_BY
ROUND = TOKENS * TILES
SUBLANES = 8
SUMS = ("product_bias", "scale", "bias")  # sums over tokens: one sublane each in the output of a grid step


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static parameters: T, the dropout rate, the norm's epsilon."""

    length: int
    rate: float
    eps: float


def forward(
    seeds: Any,
    hidden: Any,
    product: Any,
    product_bias: Any,
    scale: Any,
    bias: Any,
    total: Any,
    out: Any,
    *,
    plan: Tiling,
) -> None:
    """Write the sum of the input and the product after dropout, rounded once, and its norm."""

    def reduce(at: Any, number: int, words: jax.Array | None) -> tuple[jax.Array, ...]:
        added = product[at].astype(jnp.float32) + product_bias[...]
        if words is not None:
            added = jnp.where(_keep(words, number, plan=plan), added * (1 / (1 - plan.rate)), 0.0)
        rounded = (hidden[at].astype(jnp.float32) + added).astype(total.dtype)
        total[at] = rounded
        values = rounded.astype(jnp.float32)
        return values, *_means(values, values * values)

    def write(at: Any, number: int, words: Any, stats: tuple[jax.Array, ...]) -> None:
        del number, words
        values, mean, square = stats
        normal = (values - mean) * _inverse(mean, square, plan=plan)
        out[at] = (normal * scale[...] + bias[...]).astype(out.dtype)

    _tiles(seeds, product, reduce, write, plan=plan)


def backward(
    seeds: Any,
    d_out: Any,
    total: Any,
    scale: Any,
    d_hidden: Any,
    d_product: Any,
    sums: Any,
    partial_sums: Any,
    *,
    plan: Tiling,
) -> None:
    """Write the gradients of the input and of the product, and the weight gradients summed over tokens."""
    width = d_out.shape[-1]
    partial_sums[...] = jnp.zeros_like(partial_sums)

    def reduce(at: Any, number: int, words: Any) -> tuple[jax.Array, ...]:
        # All four sums over features at once, so that they do not wait for each other.
        del number, words
        grads, values = d_out[at].astype(jnp.float32), total[at].astype(jnp.float32)
        scaled = grads * scale[...]
        return grads, values, scaled, *_means(values, values * values, scaled, scaled * values)

    def write(at: Any, number: int, words: jax.Array | None, stats: tuple[jax.Array, ...]) -> None:
        grads, values, scaled, mean, square, mean_scaled, product = stats
        inverse = _inverse(mean, square, plan=plan)
        normal, projection = (values - mean) * inverse, (product - mean * mean_scaled) * inverse
        grad_hidden = grad_product = inverse * (scaled - mean_scaled - normal * projection)
        if words is not None:
            grad_product = jnp.where(_keep(words, number, plan=plan), grad_hidden * (1 / (1 - plan.rate)), 0.0)
        d_hidden[at], d_product[at] = grad_hidden.astype(d_hidden.dtype), grad_product.astype(d_product.dtype)
        for index, array in enumerate((grad_product, grads * normal, grads)):
            partial_sums[index] = partial_sums[index] + array.reshape(-1, SUBLANES, width).sum(0)

    _tiles(seeds, d_out, reduce, write, plan=plan)
    for index in range(len(SUMS)):
        sums[0, 0, index : index + 1] = partial_sums[index].sum(0, keepdims=True)


def _tiles(
    seeds: Any,
    block: Any,
    reduce: Callable[[Any, int, jax.Array | None], tuple[jax.Array, ...]],
    write: Callable[[Any, int, jax.Array | None, tuple[jax.Array, ...]], None],
    *,
    plan: Tiling,
) -> None:
    """Process the tiles of a block; the `reduce` of each tile comes before the `write` of the previous one."""
    rows, tokens, width = block.shape
    first_row, first_token = pl.program_id(0) * rows, pl.program_id(1) * tokens

    def body(number: Any, _: None) -> None:
        rounds = jnp.int32(tokens // ROUND)  # per sequence
        row, token = jax.lax.div(number, rounds), jax.lax.rem(number, rounds) * ROUND
        tiles = [(row, pl.ds(pl.multiple_of(token + tile * TOKENS, TOKENS), TOKENS)) for tile in range(TILES)]
        words = None
        if plan.rate:
            group = jax.lax.div(first_token + token, jnp.int32(dropout.SHARED_BY)).astype(jnp.uint32)
            indices = (
                jax.lax.broadcasted_iota(jnp.uint32, (TOKENS, 1), 0) + group,
                jax.lax.broadcasted_iota(jnp.uint32, (1, width), 1),
            )
            counter = dropout.word_counter(indices, sizes=(plan.length, width))
            words = dropout.mix(counter ^ seeds[first_row + row])
        stats = reduce(tiles[0], 0, words)
        for tile, at in enumerate(tiles):
            next_stats = reduce(tiles[tile + 1], tile + 1, words) if tile + 1 < TILES else stats
            write(at, tile, words, stats)
            stats = next_stats

    jax.lax.fori_loop(0, rows * tokens // ROUND, body, None)


def _keep(words: jax.Array, tile: int, *, plan: Tiling) -> jax.Array:
    return dropout.is_kept(words * dropout.multiplier(jnp.int32(tile)), rate=plan.rate)


def _means(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(array.sum(-1, keepdims=True) * (1 / array.shape[-1]) for array in arrays)


def _inverse(mean: jax.Array, square: jax.Array, *, plan: Tiling) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + plan.eps)
