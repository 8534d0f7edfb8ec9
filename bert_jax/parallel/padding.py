"""Rows of zeros after the vocabulary's tables, so that a step on TPUs can shard these by rows.

30,522 rows do not divide over the replicas. Sharded by columns, a table is transposed after every gather, its gradient
before every reduction, and no reduction of it is a reduce-scatter (benchmarks/RESULTS.md has the costs). The rows are
a matter of the step alone. The model takes a table with them (`model/embedding.py`); nothing looks them up and their
logits have no probability, so their gradients are 0 and they stay 0. Checkpoints and parameter counts never have them.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import LAYER_AXES, STATE_AXES, size_along

_TILE_ROWS = 8  # of a TPU's (8, 128) tiles; each shard has whole ones


def added_rows(boxed: Any, *, mesh: Mesh) -> Any:
    """Return the number of rows to add to each leaf of a tree with Flax's logical axis names; 0 for most."""
    pads = pads_tables(mesh)

    def rows(leaf: Any) -> int:
        if not pads or not isinstance(leaf, nn.LogicallyPartitioned) or len(leaf.names) != 2:
            return 0
        large = math.prod(leaf.value.shape) >= meshes.MIN_SHARDED_ELEMENTS
        multiple = _TILE_ROWS * size_along(mesh.shape, axes=STATE_AXES)
        return -leaf.value.shape[0] % multiple if leaf.names[0] == meshes.PADDED_VOCAB and large else 0

    return jax.tree.map(rows, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def pads_tables(mesh: Mesh) -> bool:
    """Return whether steps on `mesh` pad: on TPUs, over several replicas, where no axis divides a layer."""
    replicas, layer_parts = (size_along(mesh.shape, axes=axes) for axes in (STATE_AXES, LAYER_AXES))
    return _is_tpu(mesh) and replicas > 1 and layer_parts == 1


def _is_tpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "tpu"


def padded_shape(leaf: jax.ShapeDtypeStruct, rows: int) -> jax.ShapeDtypeStruct:
    """Return the shape of a leaf with its added rows."""
    return jax.ShapeDtypeStruct((leaf.shape[0] + rows, *leaf.shape[1:]), leaf.dtype) if rows else leaf


def padded_sharding(sharding: NamedSharding, rows: int) -> NamedSharding:
    """Return the sharding of a leaf with its added rows: by rows, over all replicas of a slice."""
    return meshes.by_rows(cast(Mesh, sharding.mesh)) if rows else sharding


def add(leaf: jax.Array, rows: int) -> jax.Array:
    """Return a leaf with its added rows."""
    return jnp.pad(leaf, [(0, rows), *[(0, 0)] * (leaf.ndim - 1)]) if rows else leaf


def remove(leaf: jax.Array, rows: int) -> jax.Array:
    """Return a leaf without its added rows."""
    return leaf[: len(leaf) - rows] if rows else leaf


def placed(leaf: jax.Array, rows: int, sharding: NamedSharding) -> jax.Array:
    """Return a leaf of a checkpoint as a step has it, with `sharding`."""
    return _converter(add, rows, sharding)(leaf) if rows else leaf


def stored(leaf: jax.Array, rows: int, sharding: NamedSharding) -> jax.Array:
    """Return a leaf of a step as a checkpoint has it, with `sharding`."""
    return _converter(remove, rows, sharding)(leaf) if rows else leaf


@functools.cache
def _converter(convert: Any, rows: int, sharding: NamedSharding) -> Any:
    return jax.jit(lambda leaf: convert(leaf, rows), out_shardings=sharding)
