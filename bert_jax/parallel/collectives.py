"""Collectives over all devices by themselves, for measuring what the links carry."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXIS = "devices"
_GATHER, _SCATTER, _REDUCE = "all-gather", "reduce-scatter", "all-reduce"
_MODULUS = 7
KINDS = (_GATHER, _SCATTER, _REDUCE)


class Collectives:
    """Jitted collectives over `devices` in their order; a buffer is float32, and every device has a part or a copy."""

    def __init__(self, devices: Sequence[Any], *, elements: int):
        """Take buffers of about `elements` values, rounded up so that they divide over the devices."""
        count = len(devices)
        self._mesh = Mesh(np.asarray(devices), (_AXIS,), axis_types=(AxisType.Auto,))
        self._part = -(-elements // count)
        self.buffer_bytes = self._part * count * 4

    def operand(self, kind: str) -> jax.Array:
        """Return what `run` takes: of a gather the parts, of a reduction a whole buffer per device."""
        count = self._mesh.size
        shape = (count if kind == _GATHER else count * count, self._part)
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS))

        def make() -> jax.Array:
            # Small whole numbers, which differ between devices: sums are exact in any order.
            row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
            return ((row + column) % _MODULUS).astype(jnp.float32).reshape(-1)

        return jax.jit(make, out_shardings=sharding)()

    def run(self, kind: str) -> Callable[[jax.Array], jax.Array]:
        """Return the jitted collective, whose result stays on the devices."""
        return jax.jit(self._mapped(functools.partial(_collective, kind)))

    def is_right(self, kind: str, operand: jax.Array) -> bool:
        """Return whether every element of the result is right on every device; sums of whole numbers are exact."""
        count = self._mesh.size
        sums = sum(((device * count + np.arange(_MODULUS)) % _MODULUS for device in range(count)), np.zeros(_MODULUS))
        values = np.arange(_MODULUS) if kind == _GATHER else sums

        def error(local: jax.Array) -> jax.Array:
            result = _collective(kind, local).reshape(-1, self._part)
            row, column = (jax.lax.broadcasted_iota(jnp.int32, result.shape, axis) for axis in (0, 1))
            row += jax.lax.axis_index(_AXIS) if kind == _SCATTER else 0
            expected = jnp.asarray(values, jnp.float32)[(row + column) % _MODULUS]
            return jax.lax.pmax(jnp.abs(result - expected).max(keepdims=True).reshape(-1), _AXIS)

        worst = jax.jit(self._mapped(error))(operand).addressable_shards[0].data
        return float(worst[0]) == 0

    def _mapped(self, function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        spec = PartitionSpec(_AXIS)
        return jax.shard_map(function, mesh=self._mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _collective(kind: str, local: jax.Array) -> jax.Array:
    if kind == _GATHER:
        return jax.lax.all_gather(local, _AXIS, tiled=True)
    if kind == _SCATTER:
        return jax.lax.psum_scatter(local, _AXIS, tiled=True)
    return jax.lax.psum(local, _AXIS)
