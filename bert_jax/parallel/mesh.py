"""The mesh, and the table of rules that maps logical axis names to mesh axes.

This is the only file that uses NamedSharding. The mesh axes are in `parallel/axes.py`.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.config import MeshConfig
from bert_jax.errors import UserError
from bert_jax.parallel.axes import (
    AXES,
    BATCH_AXES,
    BY_SIZE_AXES,
    INNER_AXES,
    LAYER_AXES,
    SLICE_AXIS,
    STATE_AXES,
    describe,
    size_along,
)

# Logical name -> mesh axes. Parameters: [embed, heads], [embed, mlp], [vocab, embed] shard over fsdp and tensor.
# Activations: sequences over the axes that divide the batch, heads and the inner layer over tensor.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("padded_vocab", "tensor"),
    ("length", None),
    ("head_size", None),
    ("layers", None),
)

PADDED_VOCAB = "padded_vocab"  # rows of a table to which a step may add zeros (`parallel/padding.py`)

# Smaller tensors (biases, LayerNorm) are replicated along `data`: 65,536 elements are 0.02 % of BERT-Large.
MIN_SHARDED_ELEMENTS = 2**16


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of `config` over all devices; an axis of -1 takes the remaining devices.

    TPU slices are the outermost axis. The devices of each slice are arranged along their links.

    Raises:
      UserError: if the product of the axes is not the number of devices, or the number of slices is wrong.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, count=len(devices))
    shape = tuple(sizes[name] for name in INNER_AXES)
    blocks = [_arranged(block, shape=shape) for block in _slices(devices, count=sizes[SLICE_AXIS])]
    return Mesh(np.stack(blocks), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[Any], *, count: int) -> list[Sequence[Any]]:
    """Return the devices of each slice; devices other than TPUs have no slices and are divided in order."""
    if devices[0].platform != "tpu":
        size = len(devices) // count
        return [devices[begin : begin + size] for begin in range(0, len(devices), size)]
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if len(slices) != count:
        raise UserError(
            f"config.mesh.{SLICE_AXIS}={count}, but the TPUs are {len(slices)} slices: "
            f"set config.mesh.{SLICE_AXIS}={len(slices)}"
        )
    return [slices[index] for index in sorted(slices)]


def _arranged(devices: Sequence[Any], *, shape: tuple[int, ...]) -> np.ndarray:
    """Return the devices of a slice, arranged in `shape` with linked devices next to each other."""
    # Every machine without TPUs has its own slice_index; jax.make_mesh takes these for pod slices and fails.
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return np.asarray(devices).reshape(shape)
    return jax.make_mesh(shape, INNER_AXES, devices=devices).devices


def axis_sizes(config: MeshConfig, *, count: int) -> dict[str, int]:
    """Return the length of each axis over `count` devices.

    Raises:
      UserError: if their product is not `count`.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    known = math.prod(size for size in sizes.values() if size > 0)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = count // known
    if math.prod(sizes.values()) != count:
        raise UserError(
            f"config.mesh: {describe(sizes)} does not make {count} devices: set one axis to -1 (the remaining devices) "
            "and the others to divisors of the number of devices"
        )
    return sizes


def rules_for(mesh: Mesh, *, sizes: Mapping[str, int]) -> tuple[tuple[str, Any], ...]:
    """Return `RULES`, without the rules for logical axes of `sizes` that their mesh axes do not divide."""
    sizes = {**sizes, **({PADDED_VOCAB: sizes["vocab"]} if "vocab" in sizes else {})}
    return tuple((name, _fitting(axes, size=sizes[name], mesh=mesh) if name in sizes else axes) for name, axes in RULES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, *, rules: Sequence[tuple[str, Any]] = RULES) -> Iterator[None]:
    """Trace and run the body inside `mesh`, with `rules` for the model's logical axis names."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def tree_shardings(boxed: Any, *, mesh: Mesh, rules: Sequence[tuple[str, Any]] = RULES) -> Any:
    """Return the sharding of each leaf of a tree with Flax's logical axis names, as an unboxed tree.

    Large parameters are also sharded in one dimension over the axes that shard by size (`data`); a step gathers them
    when it starts (`parallel/data_parallel.py`). A dimension that its mesh axes do not divide is not sharded.
    """
    table = dict(rules)

    def sharding(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, PartitionSpec())
        spec: list[Any] = [
            _fitting(table[name] if name else None, size=size, mesh=mesh)
            for name, size in zip(leaf.names, leaf.value.shape, strict=True)
        ]
        dimension = _dimension_by_size(leaf.value.shape, spec=spec, names=leaf.names, mesh=mesh)
        if dimension is not None:
            # These axes come first, in the order in which a step gathers (`sharded_dimensions`).
            spec[dimension] = (*BY_SIZE_AXES, *_names(spec[dimension]))
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def _fitting(axes: str | tuple[str, ...] | None, *, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    return axes if size % size_along(mesh.shape, axes=_names(axes)) == 0 else None


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a PartitionSpec."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _dimension_by_size(
    shape: tuple[int, ...], *, spec: Sequence[Any], names: Sequence[str | None], mesh: Mesh
) -> int | None:
    """Return the dimension to shard by size: the one whose shards waste the least padding in a TPU's (8, 128) tiles.

    None for small tensors, where the gather would cost more than the memory saved, and if no dimension divides.
    """
    count = size_along(mesh.shape, axes=BY_SIZE_AXES)
    if count == 1 or math.prod(shape) < MIN_SHARDED_ELEMENTS:
        return None
    waste = {}
    for dimension, size in enumerate(shape):
        divisor = size_along(mesh.shape, axes=_names(spec[dimension]))
        if size % (divisor * count) or names[dimension] == "layers":
            continue
        local, tile = size // (divisor * count), {1: 128, 2: 8}.get(len(shape) - dimension, 1)
        # A tie goes to the earlier dimension: its gather is a plain concatenation.
        waste[dimension] = -(-local // tile) * tile / local + (0.1 if divisor > 1 else 0)
    return min(waste, key=lambda dimension: waste[dimension]) if waste else None


def sharded_dimensions(sharding: NamedSharding) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the dimensions that are sharded over replicas, each with its axes, outermost first."""
    sharded = []
    for dimension, axes in enumerate(sharding.spec):
        named = tuple(axis for axis in _names(axes) if axis in STATE_AXES)
        if named:
            sharded.append((dimension, named))
    return tuple(sharded)


def gathered_by_size(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of a tensor after the gather over the axes that shard by size."""
    spec = [tuple(axis for axis in _names(axes) if axis not in BY_SIZE_AXES) or None for axes in sharding.spec]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def by_rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a tensor's first dimension over all replicas of a slice, in the order of a gather."""
    return NamedSharding(mesh, PartitionSpec(STATE_AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """Return the number of shards of a batch, which must divide its size."""
    return size_along(mesh.shape, axes=BATCH_AXES)


def batch_shards(mesh: Mesh, *, host: int | None = None) -> tuple[tuple[int, ...], int]:
    """Return the batch shards that the devices of `host` (default: this host) have, and the number of shards.

    The shards of a host need not be contiguous, because the mesh follows the links of the pod. Hosts that differ only
    along axes within a layer have the same shards.
    """
    host = jax.process_index() if host is None else host
    shards = mesh.devices.reshape(-1, size_along(mesh.shape, axes=LAYER_AXES))  # the axes of a batch come first
    local_shards = [
        number for number, devices in enumerate(shards) if any(device.process_index == host for device in devices)
    ]
    return tuple(local_shards), len(shards)


def to_global(local: Any, *, mesh: Mesh) -> Any:
    """Return global arrays, sharded by batch, from the concatenated `batch_shards` of this host."""
    sharding = batch_sharding(mesh)
    local_shards, count = batch_shards(mesh)
    position = {shard: number for number, shard in enumerate(local_shards)}

    def to_device(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        size = len(leaf) // len(local_shards)

        def rows_of_device(index: Any) -> np.ndarray:
            begin = position[(index[0].start or 0) // size] * size
            return leaf[begin : begin + size]

        return jax.make_array_from_callback((size * count, *leaf.shape[1:]), sharding, rows_of_device)

    return jax.tree.map(to_device, local)


def whole_to_global(whole: Any, *, mesh: Mesh) -> Any:
    """Return global arrays, sharded by batch, from arrays that every host has whole."""
    sharding = batch_sharding(mesh)

    def to_device(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(to_device, whole)


def bytes_per_device(shapes: Any, *, shardings: Any) -> int:
    """Return the bytes of a tree of arrays on one device."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)
