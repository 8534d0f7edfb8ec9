"""Drop values by a counter hash: no stored bits, no generator, the same mask on every mesh.

A mask is a function of (key, layer, site, global row, place in the row) alone, so it does not change with the number of
devices or hosts, with gradient accumulation, rematerialization or scanned layers (DESIGN, invariant 3). The hash is the
32-bit finaliser of MurmurHash3; `tests/test_dropout.py` checks rate and independence between layers, sites, rows,
places and steps.

Four values share a word, mixed by all but the last step of that finaliser; each multiplies it by an odd constant of its
own and is dropped where the product, read as a signed number, lies below a threshold. A kernel that holds all four pays
for the mixing once (it is most of 10 operations a value). As the mixing permutes all 32-bit words, and so does each
product, the rate is exact to 2^-32; the upper bits of the four products are unrelated: joint rates of pairs, triples
and all four lie within 0.1 % of independent ones (`tests/test_attention_dropout.py`). Tokens 16 apart share one (a
register holds 16), and four heads share one (`attention_dropout.py`).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

# Odd constants with well-spread bits keep layers, sites, rows and places on separate streams (2^32 / golden ratio, and
# the primes of xxHash32).
_PLACE, _LAYER, _SITE, _ROW = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F

SHARED_BY = 4  # values of a word
TOKENS_APART = 16  # those of them that are tokens
# The primes of xxHash32 and the second factor of MurmurHash3's finaliser: odd, with well-spread bits.
_MULTIPLIERS = (0xC2B2AE35, 0x85EBCA77, 0x27D4EB2F, 0x165667B1)


@struct.dataclass
class Dropout:
    """Hold what a mask depends on; `None` in its place means that nothing is dropped."""

    seed: UInt32[Array, ""]
    rows: Int[Array, " B"]

    @classmethod
    def create(cls, key: Key[Array, ""], *, rows: Int[Array, " B"]) -> "Dropout":
        """Return the dropout of one step, from the step's key and the global index of each row."""
        return cls(seed=jax.random.bits(key, (), jnp.uint32), rows=rows)

    def at_layer(self, index: Int[Array, ""] | int) -> "Dropout":
        """Return the dropout of layer `index`, counted from 0."""
        shifted = jnp.asarray(index, jnp.uint32) + 1
        return dataclasses.replace(self, seed=_hash(self.seed ^ (shifted * jnp.uint32(_LAYER))))

    def row_seeds(self, site: int) -> UInt32[Array, " B"]:
        """Return the seed of each row's stream at `site`."""
        seed = _hash(self.seed ^ jnp.uint32(site * _SITE & 0xFFFFFFFF))
        return _hash(seed ^ (self.rows.astype(jnp.uint32) * jnp.uint32(_ROW)))

    def apply(self, values: Float[Array, "B ..."], *, rate: float, site: int) -> Float[Array, "B ..."]:
        """Zero each value with probability `rate` and scale the others by 1 / (1 - rate).

        `site` tells apart the places of one layer that drop. A row may hold up to 2^32 values.
        """
        if rate == 0.0:
            return values
        return drop(values, self.row_seeds(site), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def drop(values: Float[Array, "B ..."], seeds: UInt32[Array, " B"], rate: float) -> Float[Array, "B ..."]:
    """Drop by `Dropout.row_seeds`; the backward pass draws the mask again and keeps no bit of it."""
    indices = []
    for axis in range(1, values.ndim):
        shape = [1] * values.ndim
        shape[axis] = values.shape[axis]
        indices.append(jnp.arange(values.shape[axis], dtype=jnp.uint32).reshape(shape))
    seed = seeds.reshape((-1,) + (1,) * (values.ndim - 1))
    keep = keep_mask(indices, sizes=values.shape[1:], seed=seed, rate=rate)
    # In float32, as the kernels do: 1 / 0.9 rounded to bfloat16 is 0.16 % too small.
    scaled = (values.astype(jnp.float32) * (1 / (1 - rate))).astype(values.dtype)
    return jnp.where(keep, scaled, jnp.zeros((), values.dtype))


drop.defvjp(
    lambda values, seeds, rate: (drop(values, seeds, rate), seeds),
    lambda rate, seeds, grads: (drop(grads, seeds, rate), None),
)


def keep_mask(indices: Sequence[Array], *, sizes: Sequence[int], seed: Array, rate: float) -> Bool[Array, "..."]:
    """Return which values of a row of `sizes` stay, at `indices` (one for each axis) that broadcast with `seed`."""
    token, *rest = indices
    group, within = token // (SHARED_BY * TOKENS_APART), token % TOKENS_APART
    words = mix(word_place((group * TOKENS_APART + within, *rest), sizes=sizes) ^ seed)
    return kept(words * multiplier(token // TOKENS_APART % SHARED_BY), rate=rate)


def word_place(indices: Sequence[Array], *, sizes: Sequence[int]) -> UInt32[Array, "..."]:
    """Return the counter of a word, the input of `mix`, from its index along each axis."""
    place = jnp.zeros((), jnp.uint32)
    for axis, index in enumerate(indices):
        place = place + index.astype(jnp.uint32) * jnp.uint32(math.prod(sizes[axis + 1 :]) * _PLACE & 0xFFFFFFFF)
    return place


def mix(values: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mix 32 bits by MurmurHash3's finaliser (public domain) up to its last factor: `multiplier` takes its place."""
    values = values ^ (values >> 16)
    values = values * jnp.uint32(0x85EBCA6B)
    return values ^ (values >> 13)


def multiplier(number: Int[Array, "..."] | UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the factor of a value by its number among those that share its word."""
    choices = [jnp.uint32(choice) for choice in _MULTIPLIERS]
    low = jnp.where(number == 0, choices[0], choices[1])
    return jnp.where(number < 2, low, jnp.where(number == 2, choices[2], choices[3]))


def kept(products: UInt32[Array, "..."], *, rate: float) -> Bool[Array, "..."]:
    """Return where to keep, given words times their factors; the comparison is signed, as a TPU's are."""
    threshold = jnp.int32(round(rate * 2**32) - 2**31)
    return jax.lax.bitcast_convert_type(products, jnp.int32) >= threshold


def _hash(values: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Mix 32 bits so that each depends on all (the finaliser as a whole)."""
    values = mix(values) * jnp.uint32(0xC2B2AE35)
    return values ^ (values >> 16)
