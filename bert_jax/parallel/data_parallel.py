"""Data parallelism with a sharded state (ZeRO), along the axes that divide the batch.

Each replica of a slice keeps 1/N of the float32 parameters and moments. A step

1. gathers the weights (all-gather) in the dtype of the computation,
2. computes the gradients of the replica's sequences, micro-batch by micro-batch, without communication,
3. reduces the gradients (reduce-scatter): each replica gets the shard that matches its part of the state.

Every slice has a copy of the state. Only the sum of the gradient shards crosses the network between slices, once per
step.

If no axis divides a layer, this is a `shard_map`. Otherwise the same three operations are sharding constraints, and XLA
chooses the communication, inside micro-batches too: a `shard_map` over a subset of the mesh axes fails checks in XLA's
partitioner (jax 0.10.2).
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import BATCH_AXES, INNER_AXES, LAYER_AXES, SLICE_AXIS, size_along

Result = TypeVar("Result")

_MIN_REPLICAS_TO_SPLIT = 64


class DataParallel:
    """How parameters are sharded over the replicas, and the dtype in which each is gathered."""

    def __init__(self, mesh: Mesh, *, shardings: Any, dtypes: Any, split: Any):
        """Close over the mesh and three trees of one structure: shardings, dtypes and `split` of the parameters.

        `split` says which parameters `gather` returns as a tuple over their leading axis: those of unrolled layers are
        gathered and reduced layer by layer and never stacked.
        """
        self.mesh = mesh
        self._is_manual = size_along(mesh.shape, axes=LAYER_AXES) == 1
        self._shardings = shardings
        self._dtypes, self._split = dtypes, split

    @property
    def size(self) -> int:
        """Return the number of replicas."""
        return size_along(self.mesh.shape, axes=BATCH_AXES)

    @property
    def is_on_gpu(self) -> bool:
        """Return whether the replicas are GPUs."""
        return self.mesh.devices.flat[0].platform == "gpu"

    def run(self, function: Callable[..., Result], params: Any, batch: Any, *rest: Any, reduced: Any) -> Result:
        """Call `function(params, batch, *rest)` on every replica.

        The function gets `params` as stored (sharded), the replica's sequences of `batch`, and `rest` whole.
        `reduced` is a tree prefix of the result: True for a tree like `params` that `scatter` returned, False for
        values that are the same on all replicas.
        """
        if not self._is_manual:
            return function(params, batch, *rest)
        specs = jax.tree.map(lambda sharding: sharding.spec, self._shardings)
        out = jax.tree.map(lambda is_params: specs if is_params else PartitionSpec(), reduced)

        def inside(*args: Any) -> Result:
            with nn.logical_axis_rules(()):  # XLA partitions nothing in here
                return function(*args)

        return jax.shard_map(
            inside,
            mesh=self.mesh,
            in_specs=(specs, PartitionSpec(BATCH_AXES), *(PartitionSpec() for _ in rest)),
            out_specs=out,
            check_vma=False,
        )(params, batch, *rest)

    def gather(self, params: Any) -> Any:
        """Return the whole weights in the dtype of the computation; to be called inside `run`."""

        def one(value: jax.Array, dtype: Any, split: bool, sharding: Any) -> Any:
            if not self._is_manual:
                whole = jax.lax.with_sharding_constraint(value.astype(dtype), meshes.gathered_by_size(sharding))
                return whole if not split else tuple(part[0] for part in jax.lax.split(whole, (1,) * len(whole)))
            sharded_dims = meshes.sharded_dimensions(sharding)
            if not split:
                return self._whole(value.astype(dtype), sharded_dims)
            # Cast layer by layer: XLA then reads each layer's shard once and writes it in the narrow dtype.
            layers = jax.lax.split(value, (1,) * len(value))
            return tuple(self._whole(layer[0].astype(dtype), _inner(sharded_dims)) for layer in layers)

        return jax.tree.map(one, params, self._dtypes, self._split, self._shardings)

    def scatter(self, grads: Any) -> Any:
        """Return this replica's shard of the summed gradients, in `dtypes`; to be called inside `run`."""

        def one(dtype: Any, split: bool, sharding: Any, value: Any) -> jax.Array:
            if not self._is_manual:
                value = (jnp.stack(value) if split else value).astype(dtype)
                return jax.lax.with_sharding_constraint(value, sharding)
            sharded_dims = meshes.sharded_dimensions(sharding)
            if not split:
                return self._reduced(value.astype(dtype), sharded_dims)
            if not sharded_dims:  # a small parameter: one reduction for all layers
                return self._reduced(jnp.stack(value).astype(dtype), ())
            return jnp.stack([self._reduced(part.astype(dtype), _inner(sharded_dims)) for part in value])

        return jax.tree.map(one, self._dtypes, self._split, self._shardings, grads)

    def total(self, tree: Any) -> Any:
        """Return the sum over the replicas; to be called inside `run`."""
        return self._sum(tree, BATCH_AXES) if self._is_manual else tree

    def concatenate(self, tree: Any) -> Any:
        """Return the arrays of all replicas, concatenated along the batch; to be called inside `run`."""
        if not self._is_manual:
            return tree
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, BATCH_AXES, axis=0, tiled=True), tree)

    def _whole(self, value: jax.Array, sharded_dims: "_ShardedDims") -> jax.Array:
        for dimension, axes in sharded_dims:
            for gather_axes, groups in _all_gathers({axis: self.mesh.shape[axis] for axis in axes}):
                value = jax.lax.all_gather(value, gather_axes, axis=dimension, tiled=True, axis_index_groups=groups)
        return value

    def _reduced(self, value: jax.Array, sharded_dims: "_ShardedDims") -> jax.Array:
        for dimension, axes in sharded_dims:
            value = jax.lax.psum_scatter(value, axes, scatter_dimension=dimension, tiled=True)
        scattered = [axis for _, axes in sharded_dims for axis in axes]
        return self._sum(value, tuple(axis for axis in BATCH_AXES if axis not in scattered))

    def _sum(self, tree: Any, axes: tuple[str, ...]) -> Any:
        """Return the sum over `axes`: first inside each slice, then over the slices."""
        for network in (INNER_AXES, (SLICE_AXIS,)):
            along = tuple(axis for axis in axes if axis in network and self.mesh.shape[axis] > 1)
            tree = jax.lax.psum(tree, along) if along else tree
        return tree


_ShardedDims = tuple[tuple[int, tuple[str, ...]], ...]


def _inner(sharded_dims: _ShardedDims) -> _ShardedDims:
    """Return the dimensions of one layer of a stacked parameter."""
    return tuple((dimension - 1, axes) for dimension, axes in sharded_dims)


_Groups = list[list[int]]


def _all_gathers(sizes: dict[str, int]) -> list[tuple[str | tuple[str, ...], _Groups | None]]:
    """Return axes and groups of each all-gather, in order, to gather over the axes of `sizes` (outermost first).

    From 64 chips on, the TPU compiler turns one all-gather over everything into an all-reduce of arrays that are zero
    outside their shard, and writing the zeros takes 7 % of a BERT-Large step (benchmarks/RESULTS.md). So each axis is
    gathered separately, and a long axis in two all-gathers: over neighbors, then over the groups of neighbors.
    """
    if math.prod(sizes.values()) < _MIN_REPLICAS_TO_SPLIT:
        return [(tuple(sizes), None)]
    gathers: list[tuple[str | tuple[str, ...], _Groups | None]] = []
    for axis, size in reversed(sizes.items()):
        near = max(n for n in range(1, size + 1) if size % n == 0 and n * n <= size)
        if size >= _MIN_REPLICAS_TO_SPLIT and near > 1:
            blocks = range(0, size, near)
            gathers.append((axis, [[block + offset for offset in range(near)] for block in blocks]))
            gathers.append((axis, [[block + offset for block in blocks] for offset in range(near)]))
        elif size > 1:
            gathers.append((axis, None))
    return gathers
