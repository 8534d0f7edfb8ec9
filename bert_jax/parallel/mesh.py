"""Map logical axis names to mesh axes: the one table of rules, and the only file that names NamedSharding.

Mesh axes: `data` replicates parameters, `fsdp` shards them and the batch, `tensor` shards within a layer.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.config import Config, MeshConfig
from bert_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
REPLICA_AXES = ("data", "fsdp")  # along which rows are divided: every device there computes with whole weights

# Logical name -> mesh axes. Parameters: [embed, heads], [embed, mlp], [vocab, embed] shard over fsdp and tensor.
# Activations: rows over data and fsdp, heads and the inner layer over tensor.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp")),
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

    Raises:
      UserError: if the axes do not multiply to the number of devices, or these are several slices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and devices[0].platform == "tpu":
        raise UserError(
            f"the devices are {slices} slices, joined by the data-centre network: a run takes one slice; ask for a "
            "larger one, or start a run on each"
        )
    sizes, types = tuple(axis_sizes(config, count=len(devices)).values()), (AxisType.Auto,) * 3
    if slices > 1:  # machines without TPUs, a "slice" each, which jax.make_mesh takes for slices of a pod and refuses
        return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=types)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)


def axis_sizes(config: MeshConfig, *, count: int) -> dict[str, int]:
    """Return the length of each axis over `count` devices.

    Raises:
      UserError: if they do not multiply to `count`.
    """
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    known = math.prod(size for size in sizes.values() if size > 0)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = count // known
    if math.prod(sizes.values()) != count:
        shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(
            f"config.mesh: {shape} does not make {count} devices; set one axis to -1 to let it take the rest, "
            "and the others to divisors of the number of devices"
        )
    return sizes


def validate_for_mesh(config: Config, *, mesh: Mesh | AbstractMesh) -> None:
    """Check that batch, heads and inner layer divide over the mesh.

    Raises:
      UserError: naming the field and the nearest value that does.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = config.train.gradient_accumulation_steps
    batches = {"config.train.batch_size": config.train.batch_size}
    for index, item in enumerate(config.train.phases):
        if item.batch_size:
            batches[f"config.train.phases[{index}].batch_size"] = item.batch_size
    for field, batch in batches.items():
        if batch % (rows * parts):
            raise UserError(
                f"{field}={batch} does not divide over {rows} devices (mesh data x fsdp) times "
                f"{parts} gradient_accumulation_steps: make it a multiple of {rows * parts}, "
                f"for example {-(-batch // (rows * parts)) * rows * parts}"
            )
    replicas = config.optimizer.clip_replicas
    if replicas > 1:
        _validate_clip_replicas(config, replicas=replicas, batches=batches, mesh=mesh)
    tensor = mesh.shape["tensor"]
    for name in ("num_attention_heads", "intermediate_size"):
        if getattr(config.model, name) % tensor:
            raise UserError(
                f"config.mesh.tensor={tensor} does not divide config.model.{name}={getattr(config.model, name)}"
            )


def _validate_clip_replicas(
    config: Config, *, replicas: int, batches: dict[str, int], mesh: Mesh | AbstractMesh
) -> None:
    field = f"config.optimizer.clip_replicas={replicas}"
    if mesh.shape["data"] != mesh.size:
        raise UserError(f"{field}: replicas are clipped on a mesh of data alone; set config.mesh.fsdp and tensor to 1")
    if replicas % mesh.size:
        raise UserError(
            f"{field} does not divide over {mesh.size} devices: make it a multiple, for example "
            f"{-(-replicas // mesh.size) * mesh.size}, or 1 to clip the whole batch's gradient"
        )
    for name, batch in batches.items():
        if batch % replicas:
            raise UserError(f"{field} does not divide {name}={batch}: change one of them")
    parts = config.train.gradient_accumulation_steps
    if parts not in (1, replicas // mesh.size):
        raise UserError(
            f"config.train.gradient_accumulation_steps={parts}: with {field} every device works replica by replica, "
            f"{replicas // mesh.size} of them; leave it at 1"
        )


def rules_for(config: Config, *, mesh: Mesh) -> tuple[tuple[str, Any], ...]:
    """Return `RULES`, with the vocabulary left whole where it does not divide over `tensor`."""
    whole = config.model.vocab_size % mesh.shape["tensor"] != 0
    return tuple((name, None if name == "vocab" and whole else axes) for name, axes in RULES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, *, rules: Sequence[tuple[str, Any]] = RULES) -> Iterator[None]:
    """Trace and run inside `mesh`, with the model's logical names mapped by `rules`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def tree_shardings(boxed: Any, *, mesh: Mesh, rules: Sequence[tuple[str, Any]] = RULES) -> Any:
    """Return the sharding of each leaf of a tree that carries Flax's logical names, as an unboxed tree.

    What the rules leave is sharded over `data` too, in one dimension: a step gathers it when it begins
    (`parallel/data_parallel.py`). A dimension that its mesh axes do not divide is left whole.
    """
    table = dict(rules)

    def sharding(leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            return NamedSharding(mesh, PartitionSpec())
        spec: list[Any] = [
            _fitting(table[name] if name else None, size=size, mesh=mesh)
            for name, size in zip(leaf.names, leaf.value.shape, strict=True)
        ]
        dimension = _data_dimension(leaf.value.shape, spec=spec, names=leaf.names, mesh=mesh)
        if dimension is not None:
            other = spec[dimension]
            # `data` comes first, the order in which `replica_shares` names the axes that a step gathers over.
            spec[dimension] = "data" if other is None else ("data", other)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))


def _fitting(axes: str | tuple[str, ...] | None, *, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    return axes if size % math.prod(mesh.shape[name] for name in _names(axes)) == 0 else None


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a specification."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _data_dimension(
    shape: tuple[int, ...], *, spec: Sequence[Any], names: Sequence[str | None], mesh: Mesh
) -> int | None:
    """Return the dimension to shard over `data`: the one whose shards waste the least of a TPU's (8, 128) tiles.

    None for small tensors, whose gathering would cost more than the memory it saves, and where nothing divides.
    """
    data = mesh.shape["data"]
    if data == 1 or math.prod(shape) < _MIN_SHARDED_ELEMENTS:
        return None
    waste = {}
    for dimension, size in enumerate(shape):
        axes = spec[dimension]
        taken = math.prod(mesh.shape[name] for name in _names(axes))
        if size % (taken * data) or names[dimension] == "layers":
            continue
        local, tile = size // (taken * data), {1: 128, 2: 8}.get(len(shape) - dimension, 1)
        # Equal waste goes to the earlier dimension, whose gathering is a plain concatenation.
        waste[dimension] = -(-local // tile) * tile / local + (0.1 if taken > 1 else 0)
    return min(waste, key=lambda dimension: waste[dimension]) if waste else None


def replica_shares(sharding: NamedSharding) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the dimensions that are sharded over `data` or `fsdp`, each with those axes, outermost first."""
    shares = []
    for dimension, axes in enumerate(sharding.spec):
        named = tuple(axis for axis in _names(axes) if axis in REPLICA_AXES)
        if named:
            shares.append((dimension, named))
    return tuple(shares)


def without_data(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of a tensor that is whole on every replica of `data`."""
    kept = [tuple(axis for axis in _names(axes) if axis != "data") or None for axes in sharding.spec]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shares(mesh: Mesh, *, host: int | None = None) -> tuple[tuple[int, ...], int]:
    """Return which shares of a batch the devices of `host` (default: this one) hold, and into how many it is cut.

    A mesh may number its devices across hosts, as the links of a pod run; and hosts that differ only along `tensor`
    hold the same rows.
    """
    host = jax.process_index() if host is None else host
    shares = mesh.devices.reshape(-1, mesh.shape["tensor"])  # the axes of a batch come first in `AXES`
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
