"""The two passes of the fused residual norm: what one step of the grid computes in VMEM.

A step holds some rows and tokens, with all features. Its loop takes 64 tokens a round, in tiles of 16: they share the
dropout's words, and a tile's sums over features are written before the arithmetic of the one before it, whose gaps the
compiler then fills with them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from bert_jax.model import dropout

TOKENS = dropout.TOKENS_APART  # of a tile: the rows of a bfloat16 register
TILES = dropout.SHARED_BY
ROUND = TOKENS * TILES
SUBLANES = 8
SUMS = ("product_bias", "scale", "bias")  # over tokens: one sublane each of what a step of the grid leaves


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Hold what is static: T, the rate of dropout, the norm's epsilon."""

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
    """Write the sum of the input and what is left of the product, rounded once, and its norm."""

    def first(place: Any, number: int, words: jax.Array | None) -> tuple[jax.Array, ...]:
        added = product[place].astype(jnp.float32) + product_bias[...]
        if words is not None:
            added = jnp.where(_keep(words, number, plan=plan), added * (1 / (1 - plan.rate)), 0.0)
        rounded = (hidden[place].astype(jnp.float32) + added).astype(total.dtype)
        total[place] = rounded
        values = rounded.astype(jnp.float32)
        return values, *_means(values, values * values)

    def second(place: Any, number: int, words: Any, found: tuple[jax.Array, ...]) -> None:
        del number, words
        values, mean, square = found
        normal = (values - mean) * _inverse(mean, square, plan=plan)
        out[place] = (normal * scale[...] + bias[...]).astype(out.dtype)

    _tiles(seeds, product, first, second, plan=plan)


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
    """Write the gradients of the input and the product, and the sums over tokens of those of the weights."""
    width = d_out.shape[-1]
    partial_sums[...] = jnp.zeros_like(partial_sums)

    def first(place: Any, number: int, words: Any) -> tuple[jax.Array, ...]:
        # All four sums over features at once, so that none waits for another.
        del number, words
        grads, values = d_out[place].astype(jnp.float32), total[place].astype(jnp.float32)
        scaled = grads * scale[...]
        return grads, values, scaled, *_means(values, values * values, scaled, scaled * values)

    def second(place: Any, number: int, words: jax.Array | None, found: tuple[jax.Array, ...]) -> None:
        grads, values, scaled, mean, square, level, product = found
        inverse = _inverse(mean, square, plan=plan)
        normal, along = (values - mean) * inverse, (product - mean * level) * inverse
        to_hidden = to_product = inverse * (scaled - level - normal * along)
        if words is not None:
            to_product = jnp.where(_keep(words, number, plan=plan), to_hidden * (1 / (1 - plan.rate)), 0.0)
        d_hidden[place], d_product[place] = to_hidden.astype(d_hidden.dtype), to_product.astype(d_product.dtype)
        for index, array in enumerate((to_product, grads * normal, grads)):
            partial_sums[index] = partial_sums[index] + array.reshape(-1, SUBLANES, width).sum(0)

    _tiles(seeds, d_out, first, second, plan=plan)
    for index in range(len(SUMS)):
        sums[0, 0, index : index + 1] = partial_sums[index].sum(0, keepdims=True)


def _tiles(
    seeds: Any,
    block: Any,
    first: Callable[[Any, int, jax.Array | None], tuple[jax.Array, ...]],
    second: Callable[[Any, int, jax.Array | None, tuple[jax.Array, ...]], None],
    *,
    plan: Tiling,
) -> None:
    """Go through a block's tiles; the first stage of each is written before the second of the one before it."""
    rows, tokens, width = block.shape
    first_row, first_token = pl.program_id(0) * rows, pl.program_id(1) * tokens

    def body(number: Any, _: None) -> None:
        rounds = jnp.int32(tokens // ROUND)  # of a row
        row, token = jax.lax.div(number, rounds), jax.lax.rem(number, rounds) * ROUND
        places = [(row, pl.ds(pl.multiple_of(token + tile * TOKENS, TOKENS), TOKENS)) for tile in range(TILES)]
        words = None
        if plan.rate:
            group = jax.lax.div(first_token + token, jnp.int32(dropout.SHARED_BY)).astype(jnp.uint32)
            indices = (
                jax.lax.broadcasted_iota(jnp.uint32, (TOKENS, 1), 0) + group,
                jax.lax.broadcasted_iota(jnp.uint32, (1, width), 1),
            )
            place = dropout.word_place(indices, sizes=(plan.length, width))
            words = dropout.mix(place ^ seeds[first_row + row])
        waiting = first(places[0], 0, words)
        for tile, place in enumerate(places):
            following = first(places[tile + 1], tile + 1, words) if tile + 1 < TILES else waiting
            second(place, tile, words, waiting)
            waiting = following

    jax.lax.fori_loop(0, rows * tokens // ROUND, body, None)


def _keep(words: jax.Array, tile: int, *, plan: Tiling) -> jax.Array:
    return dropout.kept(words * dropout.multiplier(jnp.int32(tile)), rate=plan.rate)


def _means(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(array.sum(-1, keepdims=True) * (1 / array.shape[-1]) for array in arrays)


def _inverse(mean: jax.Array, square: jax.Array, *, plan: Tiling) -> jax.Array:
    return jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + plan.eps)
