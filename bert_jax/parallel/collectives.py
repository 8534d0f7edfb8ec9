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
            # Small whole numbers, which differ between devices: sums are exact in any order. A count of all values
            # would not fit in int32 on large slices.
            row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
            return ((row + column) % 7).astype(jnp.float32).reshape(-1)

        return jax.jit(make, out_shardings=sharding)()

    def run(self, kind: str) -> Callable[[jax.Array], jax.Array]:
        """Return the jitted collective, whose result stays on the devices."""
        return jax.jit(self._mapped(functools.partial(_collective, kind)))

    def is_right(self, kind: str, operand: jax.Array) -> bool:
        """Return whether the result's sum on every device is what the operand's parts add up to."""

        def error(local: jax.Array) -> jax.Array:
            total = _collective(kind, local).sum(keepdims=True)
            whole = jax.lax.psum(local.sum(keepdims=True), _AXIS)
            total = jax.lax.psum(total, _AXIS) if kind == _SCATTER else total
            return jax.lax.pmax(jnp.abs(total - whole) / whole, _AXIS)

        worst = jax.jit(self._mapped(error))(operand).addressable_shards[0].data
        return float(worst[0]) < 1e-5  # sums of up to 2^28 values in float32, by trees

    def _mapped(self, function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        spec = PartitionSpec(_AXIS)
        return jax.shard_map(function, mesh=self._mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _collective(kind: str, local: jax.Array) -> jax.Array:
    if kind == _GATHER:
        return jax.lax.all_gather(local, _AXIS, tiled=True)
    if kind == _SCATTER:
        return jax.lax.psum_scatter(local, _AXIS, tiled=True)
    return jax.lax.psum(local, _AXIS)
