"""List the axes of a mesh, once: mesh, shardings, batches and error messages are derived from this table.

A new axis is a line here and a field of `config.MeshConfig`; one along which named dimensions of the model are sharded
is named in `mesh.RULES` too.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping


class StateLayout(enum.Enum):
    """How parameters and moments lie along an axis."""

    WHOLE = enum.auto()  # a copy on each index of the axis
    BY_SIZE = enum.auto()  # sharded in whichever dimension wastes least; gathered when a step starts
    BY_NAME = enum.auto()  # sharded in the dimensions that `mesh.RULES` names


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of the mesh; along one that does not divide the batch every device has the same rows."""

    name: str
    divides_batch: bool
    state: StateLayout
    joins_slices: bool = False  # over the data-centre network, where the devices are several slices of TPUs


# From the outside, whose neighbors are the farthest apart, to the inside; the axes that divide the batch come first.
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
# Along these a step gathers weights and scatters gradients.
STATE_AXES = tuple(axis.name for axis in TABLE if axis.divides_batch and axis.state is not StateLayout.WHOLE)


def size_along(sizes: Mapping[str, int], *, axes: Iterable[str]) -> int:
    """Return the number of devices along `axes` of a mesh of `sizes`."""
    return math.prod(sizes[name] for name in axes)


def shown(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes that a message names: all but the one between slices where there is one slice."""
    return tuple(name for name in AXES if name != SLICE_AXIS or sizes[name] != 1)


def describe(sizes: Mapping[str, int]) -> str:
    """Return the shape of a mesh for a message, `data=4 x fsdp=2 x tensor=1`."""
    return " x ".join(f"{name}={sizes[name]}" for name in shown(sizes))
