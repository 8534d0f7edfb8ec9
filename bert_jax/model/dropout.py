"""Dropout by a counter hash: no stored bits, no generator, and the same mask on every mesh.

A mask depends only on (PRNG key, layer, site, global sequence index, position in the sequence). So it does not change
with the number of devices or hosts, gradient accumulation, rematerialization or scanned layers. The hash is the 32-bit
finalizer of MurmurHash3; `tests/test_dropout.py` checks the rate, and the independence between layers, sites,
sequences, positions and steps.

Four values share a word. The word is mixed by all steps of the finalizer except the last; each of the four values
multiplies it by a different odd constant, and is dropped if the product, as a signed integer, is below a threshold. A
kernel that has all four values mixes once, and mixing is most of the 10 operations per value. Both the mixing and the
products permute all 32-bit words, so the rate is exact to 2^-32. The upper bits of the four products are
unrelated: the joint rates of pairs, triples and all four are within 0.1 % of independent ones
(`tests/test_attention_dropout.py`). Tokens 16 apart share a word (a register holds 16), and so do four heads
(`attention_dropout.py`).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

# Odd constants with well-spread bits give layers, sites, sequences and positions separate streams (2^32 / golden ratio,
# and the primes of xxHash32).
_POSITION, _LAYER, _SITE, _ROW = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F

SHARED_BY = 4  # values per word
TOKENS_APART = 16  # distance of tokens that share a word
# The primes of xxHash32 and the second factor of MurmurHash3's finalizer: odd, with well-spread bits.
_MULTIPLIERS = (0xC2B2AE35, 0x85EBCA77, 0x27D4EB2F, 0x165667B1)


@struct.dataclass
class Dropout:
    """The seed and the sequence indices that masks depend on; `None` instead of it means no dropout."""

    seed: UInt32[Array, ""]
    rows: Int[Array, " B"]

    @classmethod
    def create(cls, key: Key[Array, ""], *, rows: Int[Array, " B"]) -> "Dropout":
        """Return the dropout of one step, from the step's key and the global index of each sequence."""
        return cls(seed=jax.random.bits(key, (), jnp.uint32), rows=rows)

    def at_layer(self, index: Int[Array, ""] | int) -> "Dropout":
        """Return the dropout of layer `index`, counted from 0."""
        shifted = jnp.asarray(index, jnp.uint32) + 1
        return dataclasses.replace(self, seed=_hash(self.seed ^ (shifted * jnp.uint32(_LAYER))))

    def row_seeds(self, site: int) -> UInt32[Array, " B"]:
        """Return the seed of each sequence at `site`."""
        seed = _hash(self.seed ^ jnp.uint32(site * _SITE & 0xFFFFFFFF))
        return _hash(seed ^ (self.rows.astype(jnp.uint32) * jnp.uint32(_ROW)))

    def apply(self, values: Float[Array, "B ..."], *, rate: float, site: int) -> Float[Array, "B ..."]:
        """Zero each value with probability `rate` and scale the others by 1 / (1 - rate).

        `site` distinguishes the dropouts of one layer. A sequence may have up to 2^32 values.
        """
        if rate == 0.0:
            return values
        return drop(values, self.row_seeds(site), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def drop(values: Float[Array, "B ..."], seeds: UInt32[Array, " B"], rate: float) -> Float[Array, "B ..."]:
    """Apply dropout with the seeds of `Dropout.row_seeds`; the backward pass recomputes the mask."""
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
    lambda rate, seeds, d_out: (drop(d_out, seeds, rate), None),
)


def keep_mask(indices: Sequence[Array], *, sizes: Sequence[int], seed: Array, rate: float) -> Bool[Array, "..."]:
    """Return which values are kept; `indices` (one array per axis, of lengths `sizes`) broadcast with `seed`."""
    token, *rest = indices
    group, within = token // (SHARED_BY * TOKENS_APART), token % TOKENS_APART
    words = mix(word_counter((group * TOKENS_APART + within, *rest), sizes=sizes) ^ seed)
    return is_kept(words * multiplier(token // TOKENS_APART % SHARED_BY), rate=rate)


def word_counter(indices: Sequence[Array], *, sizes: Sequence[int]) -> UInt32[Array, "..."]:
    """Return the counter of a word, the input of `mix`, from its index along each axis."""
    counter = jnp.zeros((), jnp.uint32)
    for axis, index in enumerate(indices):
        counter = counter + index.astype(jnp.uint32) * jnp.uint32(math.prod(sizes[axis + 1 :]) * _POSITION & 0xFFFFFFFF)
    return counter


def mix(values: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mix 32 bits by MurmurHash3's finalizer (public domain) without its last factor, which `multiplier` replaces."""
    values = values ^ (values >> 16)
    values = values * jnp.uint32(0x85EBCA6B)
    return values ^ (values >> 13)


def multiplier(number: Int[Array, "..."] | UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the factor of a value by its number among the values that share a word."""
    choices = [jnp.uint32(choice) for choice in _MULTIPLIERS]
    low = jnp.where(number == 0, choices[0], choices[1])
    return jnp.where(number < 2, low, jnp.where(number == 2, choices[2], choices[3]))


def is_kept(products: UInt32[Array, "..."], *, rate: float) -> Bool[Array, "..."]:
    """Return which values are kept, from words times factors; the comparison is signed, as on a TPU."""
    threshold = jnp.int32(round(rate * 2**32) - 2**31)
    return jax.lax.bitcast_convert_type(products, jnp.int32) >= threshold


def _hash(values: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Mix 32 bits so that each depends on all (the whole finalizer)."""
    values = mix(values) * jnp.uint32(0xC2B2AE35)
    return values ^ (values >> 16)
