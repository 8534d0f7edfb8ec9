"""The table of mesh axes, from which mesh, shardings, batches and error messages are derived.

To add an axis, add a line here and a field to `config.MeshConfig`. If named dimensions of the model are sharded along
it, add it to `mesh.RULES` too.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping


class StateLayout(enum.Enum):
    """How parameters and moments are distributed along an axis."""

    WHOLE = enum.auto()  # replicated
    BY_SIZE = enum.auto()  # sharded in the dimension that wastes least padding; gathered when a step starts
    BY_NAME = enum.auto()  # sharded in the dimensions that `mesh.RULES` names


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the mesh. Along an axis that does not divide the batch, all devices have the same sequences."""

    name: str
    divides_batch: bool
    state: StateLayout
    joins_slices: bool = False  # over the data-center network between TPU slices


# From the outermost axis, with the slowest links, to the innermost; the axes that divide the batch come first.
TABLE = (
    Axis("slices", divides_batch=True, state=StateLayout.WHOLE, joins_slices=True),
    Axis("data", divides_batch=True, state=StateLayout.BY_SIZE),
    Axis("fsdp", divides_batch=True, state=StateLayout.BY_NAME),
    Axis("tensor", divides_batch=False, state=StateLayout.BY_NAME),
)

AXES = tuple(axis.name for axis in TABLE)
(SLICE_AXIS,) = (axis.name for axis in TABLE if axis.joins_slices)
INNER_AXES = tuple(axis.name for axis in TABLE if not axis.joins_slices)
BATCH_AXES = tuple(axis.name for axis in TABLE if axis.divides_batch)
LAYER_AXES = tuple(axis.name for axis in TABLE if not axis.divides_batch)
BY_SIZE_AXES = tuple(axis.name for axis in TABLE if axis.state is StateLayout.BY_SIZE)
BY_NAME_AXES = tuple(axis.name for axis in TABLE if axis.state is StateLayout.BY_NAME)
# The axes along which a step gathers weights and scatters gradients.
STATE_AXES = tuple(axis.name for axis in TABLE if axis.divides_batch and axis.state is not StateLayout.WHOLE)


def size_along(sizes: Mapping[str, int], *, axes: Iterable[str]) -> int:
    """Return the number of devices along `axes` of a mesh with these `sizes`."""
    return math.prod(sizes[name] for name in axes)


def axes_in_messages(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes that messages name: all, except the slice axis if there is one slice."""
    return tuple(name for name in AXES if name != SLICE_AXIS or sizes[name] != 1)


def describe(sizes: Mapping[str, int]) -> str:
    """Return the shape of a mesh for messages: `data=4 x fsdp=2 x tensor=1`."""
    return " x ".join(f"{name}={sizes[name]}" for name in axes_in_messages(sizes))
