"""Map logical axis names to mesh axes: the one table of rules, and the only file that names NamedSharding.

The axes themselves are in `parallel/axes.py`.
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
# Activations: rows over the axes that divide the batch, heads and the inner layer over tensor.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("length", None),
    ("head_size", None),
    ("layers", None),
)

# Smaller tensors (biases, LayerNorm) stay whole on the replicas of `data`: 64 KiElements are 0.02 % of BERT-Large.
_MIN_SHARDED_ELEMENTS = 2**16


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of `config` over all devices; an axis of -1 takes what the others leave.

    Several slices of TPUs are the outermost axis, and each is laid out along its own links.

    Raises:
      UserError: if the axes do not multiply to the number of devices, or these are another number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, count=len(devices))
    shape = tuple(sizes[name] for name in INNER_AXES)
    blocks = [_laid_out(block, shape=shape) for block in _slices(devices, count=sizes[SLICE_AXIS])]
    return Mesh(np.stack(blocks), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[Any], *, count: int) -> list[Sequence[Any]]:
    """Return the devices of each slice; devices that are no TPUs have none, and are divided in their order."""
    if devices[0].platform != "tpu":
        size = len(devices) // count
        return [devices[begin : begin + size] for begin in range(0, len(devices), size)]
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if len(slices) != count:
        raise UserError(
            f"config.mesh.{SLICE_AXIS}={count}, and the TPUs are {len(slices)} slices, joined by the data-center "
            f"network: set config.mesh.{SLICE_AXIS}={len(slices)}"
        )
    return [slices[index] for index in sorted(slices)]


def _laid_out(devices: Sequence[Any], *, shape: tuple[int, ...]) -> np.ndarray:
    """Return the devices of one slice in the shape of the mesh inside it, neighbors along links."""
    # Machines without TPUs have a slice_index each, which jax.make_mesh takes for slices of a pod and refuses.
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return np.asarray(devices).reshape(shape)
    return jax.make_mesh(shape, INNER_AXES, devices=devices).devices


def axis_sizes(config: MeshConfig, *, count: int) -> dict[str, int]:
    """Return the length of each axis over `count` devices.

    Raises:
      UserError: if they do not multiply to `count`.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    known = math.prod(size for size in sizes.values() if size > 0)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = count // known
    if math.prod(sizes.values()) != count:
        raise UserError(
            f"config.mesh: {describe(sizes)} does not make {count} devices; set one axis to -1 to let it take the "
            "rest, and the others to divisors of the number of devices"
        )
    return sizes


def rules_for(mesh: Mesh, *, sizes: Mapping[str, int]) -> tuple[tuple[str, Any], ...]:
    """Return `RULES`, with the logical axes of `sizes` left whole that do not divide over their mesh axes."""
    return tuple((name, _fitting(axes, size=sizes[name], mesh=mesh) if name in sizes else axes) for name, axes in RULES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, *, rules: Sequence[tuple[str, Any]] = RULES) -> Iterator[None]:
    """Trace and run inside `mesh`, with the model's logical names mapped by `rules`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def tree_shardings(boxed: Any, *, mesh: Mesh, rules: Sequence[tuple[str, Any]] = RULES) -> Any:
    """Return the sharding of each leaf of a tree that carries Flax's logical names, as an unboxed tree.

    What the rules leave is sharded over the axes that shard by size too (`data`), in one dimension: a step gathers it
    when it begins (`parallel/data_parallel.py`). A dimension that its mesh axes do not divide is left whole.
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
            # They come first, the order in which `replica_shares` names the axes that a step gathers over.
            spec[dimension] = (*BY_SIZE_AXES, *_names(spec[dimension]))
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def _fitting(axes: str | tuple[str, ...] | None, *, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    return axes if size % size_along(mesh.shape, axes=_names(axes)) == 0 else None


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a specification."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _dimension_by_size(
    shape: tuple[int, ...], *, spec: Sequence[Any], names: Sequence[str | None], mesh: Mesh
) -> int | None:
    """Return the dimension to shard by size: the one whose shards waste the least of a TPU's (8, 128) tiles.

    None for small tensors, whose gathering would cost more than the memory it saves, and where nothing divides.
    """
    count = size_along(mesh.shape, axes=BY_SIZE_AXES)
    if count == 1 or math.prod(shape) < _MIN_SHARDED_ELEMENTS:
        return None
    waste = {}
    for dimension, size in enumerate(shape):
        taken = size_along(mesh.shape, axes=_names(spec[dimension]))
        if size % (taken * count) or names[dimension] == "layers":
            continue
        local, tile = size // (taken * count), {1: 128, 2: 8}.get(len(shape) - dimension, 1)
        # Equal waste goes to the earlier dimension, whose gathering is a plain concatenation.
        waste[dimension] = -(-local // tile) * tile / local + (0.1 if taken > 1 else 0)
    return min(waste, key=lambda dimension: waste[dimension]) if waste else None


def replica_shares(sharding: NamedSharding) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the dimensions that are sharded over replicas, each with those axes, outermost first."""
    shares = []
    for dimension, axes in enumerate(sharding.spec):
        named = tuple(axis for axis in _names(axes) if axis in STATE_AXES)
        if named:
            shares.append((dimension, named))
    return tuple(shares)


def gathered_by_size(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of a tensor after it was gathered over the axes that shard by size."""
    kept = [tuple(axis for axis in _names(axes) if axis not in BY_SIZE_AXES) or None for axes in sharding.spec]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """Return the number of parts that a batch is divided into: its size is a multiple of it."""
    return size_along(mesh.shape, axes=BATCH_AXES)


def batch_shares(mesh: Mesh, *, host: int | None = None) -> tuple[tuple[int, ...], int]:
    """Return which shares of a batch the devices of `host` (default: this one) hold, and into how many it is cut.

    A mesh may number its devices across hosts, as the links of a pod run; and hosts that differ only along axes within
    a layer hold the same rows.
    """
    host = jax.process_index() if host is None else host
    shares = mesh.devices.reshape(-1, size_along(mesh.shape, axes=LAYER_AXES))  # the axes of a batch come first
    held = [number for number, row in enumerate(shares) if any(device.process_index == host for device in row)]
    return tuple(held), len(shares)


def to_global(local: Any, *, mesh: Mesh) -> Any:
    """Return global arrays, sharded by row, from this host's rows: its `batch_shares`, one behind the other."""
    sharding = batch_sharding(mesh)
    held, count = batch_shares(mesh)
    place = {share: number for number, share in enumerate(held)}

    def place_rows(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        size = len(leaf) // len(held)

        def rows_of_device(index: Any) -> np.ndarray:
            begin = place[(index[0].start or 0) // size] * size
            return leaf[begin : begin + size]

        return jax.make_array_from_callback((size * count, *leaf.shape[1:]), sharding, rows_of_device)

    return jax.tree.map(place_rows, local)


def whole_to_global(whole: Any, *, mesh: Mesh) -> Any:
    """Return global arrays, sharded by row, from arrays that every host holds whole."""
    sharding = batch_sharding(mesh)

    def place_rows(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place_rows, whole)


def bytes_per_device(shapes: Any, *, shardings: Any) -> int:
    """Return the bytes that a tree of arrays takes on one device."""
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in leaves)
