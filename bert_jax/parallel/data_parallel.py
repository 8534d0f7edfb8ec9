"""Compute gradients replica by replica along the axes that divide the batch, with the state sharded (ZeRO).

Each replica of a slice keeps 1/N of the float32 parameters and moments. A step gathers the weights in the dtype of the
computation, computes the gradients of the replica's own rows (micro-batch by micro-batch, with no communication in
between), and hands each replica the reduced share of the gradient that belongs to its part of the state. Several slices
hold a copy of the state each: what crosses the network between them is the sum of those shares, once a step.

That is `shard_map` where no axis divides a layer. Elsewhere the same three moves are sharding constraints, and XLA
places the communication (inside the micro-batches too): a `shard_map` over some axes of a mesh ends in failed checks of
XLA's partitioner (jax 0.10.2).
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

_SEVERAL_MOVES_FROM = 64  # replicas


class DataParallel:
    """Hold how parameters lie on the replicas, and the dtype in which each is gathered."""

    def __init__(self, mesh: Mesh, *, shardings: Any, dtypes: Any, split: Any):
        """Close over the mesh, the parameters' shardings and their dtypes (trees of a kind).

        `split` (a tree of booleans) says which parameters `gather` hands out as a tuple over their leading axis: what
        belongs to unrolled layers is then gathered and reduced layer by layer, and never stacked.
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
        """Say whether the replicas are GPUs."""
        return self.mesh.devices.flat[0].platform == "gpu"

    def run(self, function: Callable[..., Result], params: Any, batch: Any, *rest: Any, reduced: Any) -> Result:
        """Call `function(params, batch, *rest)` on every replica.

        `params` arrive as stored (a share), `batch` as the replica's rows, `rest` whole. `reduced` is a tree prefix of
        the result: True where a tree like `params` has been through `scatter`, False where the result is the same on
        all.
        """
        if not self._is_manual:
            return function(params, batch, *rest)
        specs = jax.tree.map(lambda sharding: sharding.spec, self._shardings)
        out = jax.tree.map(lambda is_params: specs if is_params else PartitionSpec(), reduced)

        def inside(*args: Any) -> Result:
            with nn.logical_axis_rules(()):  # nothing in here is left for XLA to partition
                return function(*args)

        return jax.shard_map(
            inside,
            mesh=self.mesh,
            in_specs=(specs, PartitionSpec(BATCH_AXES), *(PartitionSpec() for _ in rest)),
            out_specs=out,
            check_vma=False,
        )(params, batch, *rest)

    def gather(self, params: Any) -> Any:
        """Return the whole weights in the dtype of the computation; inside `run`."""

        def one(value: jax.Array, dtype: Any, split: bool, sharding: Any) -> Any:
            if not self._is_manual:
                whole = jax.lax.with_sharding_constraint(value.astype(dtype), meshes.gathered_by_size(sharding))
                return whole if not split else tuple(part[0] for part in jax.lax.split(whole, (1,) * len(whole)))
            shares = meshes.replica_shares(sharding)
            if not split:
                return self._whole(value.astype(dtype), shares)
            # Cast layer by layer: XLA then reads each layer's share once, and writes it narrow.
            layers = jax.lax.split(value, (1,) * len(value))
            return tuple(self._whole(layer[0].astype(dtype), _inner(shares)) for layer in layers)

        return jax.tree.map(one, params, self._dtypes, self._split, self._shardings)

    def scatter(self, grads: Any) -> Any:
        """Return this replica's share of the sum of all replicas' gradients, in `dtypes`; inside `run`."""

        def one(dtype: Any, split: bool, sharding: Any, value: Any) -> jax.Array:
            if not self._is_manual:
                value = (jnp.stack(value) if split else value).astype(dtype)
                return jax.lax.with_sharding_constraint(value, sharding)
            shares = meshes.replica_shares(sharding)
            if not split:
                return self._reduced(value.astype(dtype), shares)
            if not shares:  # small: one reduction for all layers
                return self._reduced(jnp.stack(value).astype(dtype), ())
            return jnp.stack([self._reduced(part.astype(dtype), _inner(shares)) for part in value])

        return jax.tree.map(one, self._dtypes, self._split, self._shardings, grads)

    def total(self, tree: Any) -> Any:
        """Return the sum over the replicas; inside `run`."""
        return self._sum(tree, BATCH_AXES) if self._is_manual else tree

    def _whole(self, value: jax.Array, shares: "_Shares") -> jax.Array:
        for dimension, axes in shares:
            for some, groups in _moves({axis: self.mesh.shape[axis] for axis in axes}):
                value = jax.lax.all_gather(value, some, axis=dimension, tiled=True, axis_index_groups=groups)
        return value

    def _reduced(self, value: jax.Array, shares: "_Shares") -> jax.Array:
        for dimension, axes in shares:
            value = jax.lax.psum_scatter(value, axes, scatter_dimension=dimension, tiled=True)
        scattered = [axis for _, axes in shares for axis in axes]
        return self._sum(value, tuple(axis for axis in BATCH_AXES if axis not in scattered))

    def _sum(self, tree: Any, axes: tuple[str, ...]) -> Any:
        """Return the sum over `axes`: inside each slice first, then over the slices."""
        for network in (INNER_AXES, (SLICE_AXIS,)):
            along = tuple(axis for axis in axes if axis in network and self.mesh.shape[axis] > 1)
            tree = jax.lax.psum(tree, along) if along else tree
        return tree


_Shares = tuple[tuple[int, tuple[str, ...]], ...]


def _inner(shares: _Shares) -> _Shares:
    """Return the dimensions of one layer of a stack."""
    return tuple((dimension - 1, axes) for dimension, axes in shares)


_Groups = list[list[int]]


def _moves(sizes: dict[str, int]) -> list[tuple[str | tuple[str, ...], _Groups | None]]:
    """Return axes and groups of each move, in order, that gathers over axes of `sizes`; these come outermost first.

    One move for all is a sum of arrays that are zero but for a share, once the shares are small: so the TPU's compiler
    makes it from 64 chips on, and filling in the zeros takes 7 % of a step of BERT-Large (benchmarks/RESULTS.md). Then
    each axis is a move of its own, and a long one is two: over neighbors, then over the groups of them.
    """
    if math.prod(sizes.values()) < _SEVERAL_MOVES_FROM:
        return [(tuple(sizes), None)]
    moves: list[tuple[str | tuple[str, ...], _Groups | None]] = []
    for axis, size in reversed(sizes.items()):
        near = max(n for n in range(1, size + 1) if size % n == 0 and n * n <= size)
        if size >= _SEVERAL_MOVES_FROM and near > 1:
            blocks = range(0, size, near)
            moves.append((axis, [[block + place for place in range(near)] for block in blocks]))
            moves.append((axis, [[block + place for block in blocks] for place in range(near)]))
        elif size > 1:
            moves.append((axis, None))
    return moves
