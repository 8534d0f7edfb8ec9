"""Drop values by a counter hash: no stored bits, no generator, the same mask on every mesh.

A mask is a function of (key, layer, site, global row, place in the row) alone, so it does not change with the number of
devices or hosts, with gradient accumulation, rematerialisation or scanned layers (DESIGN, invariant 3). The hash is the
32-bit finaliser of MurmurHash3; `tests/test_dropout.py` checks rate and independence between layers, sites, rows,
places and steps.
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
    return jnp.where(keep, values * jnp.asarray(1 / (1 - rate), values.dtype), jnp.zeros((), values.dtype))


drop.defvjp(
    lambda values, seeds, rate: (drop(values, seeds, rate), seeds),
    lambda rate, seeds, grads: (drop(grads, seeds, rate), None),
)


def keep_mask(indices: Sequence[Array], *, sizes: Sequence[int], seed: Array, rate: float) -> Bool[Array, "..."]:
    """Return which values of a row of `sizes` stay, at `indices` (one for each axis) that broadcast with `seed`."""
    place = jnp.zeros((), jnp.uint32)
    for axis, index in enumerate(indices):
        place = place + index * jnp.uint32(math.prod(sizes[axis + 1 :]) * _PLACE & 0xFFFFFFFF)
    return _mix(place ^ seed) >= jnp.uint32(round(rate * 2**32))


def _hash(values: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Mix 32 bits so that each depends on all (the finaliser of MurmurHash3, public domain)."""
    values = _mix(values)
    return values ^ (values >> 16)


def _mix(values: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Mix 32 bits so that the upper half depends on all: enough to be compared with a threshold."""
    values = values ^ (values >> 16)
    values = values * jnp.uint32(0x85EBCA6B)
    values = values ^ (values >> 13)
    return values * jnp.uint32(0xC2B2AE35)
