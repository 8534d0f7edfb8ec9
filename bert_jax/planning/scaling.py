"""Plan slices larger than the compiler is asked about, from a smaller slice of the same chips.

Every chip does the same in both: as many rows, the same weights, the same collectives over the same buffers. What is
scaled: the rings are as long as the large slice's, on its links. What is kept, and is an upper bound there: a chip's
share of the state, which is smaller on more chips.
"""

import dataclasses

from jax.sharding import AbstractMesh

from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import STATE_AXES
from bert_jax.planning.topology import MAX_COMPILED_CHIPS, Topology
from bert_jax.pretrain.mesh_checks import validate_for_mesh
from bert_jax.training.schedule import Phase

_CUBE = 4  # chips along an axis of the cubes that a large three-dimensional slice is put together from


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Hold what is compiled in place of a run: `config` on `part`, which the whole slice is `times` as large as."""

    config: Config
    part: Topology
    times: int = 1
    axis: str = ""  # the mesh axis that is `times` as long on the whole slice; "" where that is compiled
    axis_size: int = 1  # its compiled length

    def group_size(self, compiled: int) -> int:
        """Return how many chips of the whole slice a collective spans that spans `compiled` chips of the part."""
        along = self.times > 1 and compiled % self.axis_size == 0
        return compiled * self.times if along else compiled

    def phase(self, phase: Phase) -> Phase:
        """Return a compiled phase with the whole slice's batch."""
        return dataclasses.replace(phase, batch_size=phase.batch_size * self.times)

    def mesh_shape(self, compiled: dict[str, int]) -> dict[str, int]:
        """Return the whole slice's mesh."""
        return compiled | ({self.axis: compiled[self.axis] * self.times} if self.axis else {})


def scale_down(config: Config, *, topology: Topology) -> Scaling:
    """Return what to compile for a run on `topology`: itself up to 256 chips a slice, else a part.

    Each chip of the part has as many rows.

    Raises:
      UserError: if there is no such slice, or the config does not divide over it.
    """
    part = compiled_part(topology)
    if part == topology:
        return Scaling(config, part)
    times = topology.num_chips // part.num_chips
    sizes = meshes.axis_sizes(config.mesh, count=topology.num_chips)
    validate_for_mesh(config, mesh=AbstractMesh(tuple(sizes.values()), tuple(sizes)))
    if config.optimizer.clip_replicas > 1:
        raise UserError(
            f"config.optimizer.clip_replicas={config.optimizer.clip_replicas} is tied to the number of chips: plan at "
            f"most {MAX_COMPILED_CHIPS} chips with it, or set it to 1"
        )
    axis = next((axis for axis in STATE_AXES if sizes[axis] % times == 0 and sizes[axis] > times), None)
    if axis is None:
        raise UserError(
            f"config.mesh: neither {' nor '.join(f'{axis}={sizes[axis]}' for axis in STATE_AXES)} is a multiple of "
            f"{times}, which "
            f"{topology.name} is of the {part.name} that is compiled: choose another mesh"
        )
    sizes[axis] //= times
    phases = tuple(dataclasses.replace(phase, batch_size=phase.batch_size // times) for phase in config.train.phases)
    train = dataclasses.replace(config.train, batch_size=config.train.batch_size // times, phases=phases)
    mesh = dataclasses.replace(config.mesh, **sizes)
    small = dataclasses.replace(config, train=train, mesh=mesh)
    return Scaling(small, part, times=times, axis=axis, axis_size=sizes[axis])


def compiled_part(topology: Topology) -> Topology:
    """Return `topology` with slices of at most 256 chips: itself, or the largest that halving its slices leads to.

    Raises:
      UserError: if there is no such large slice.
    """
    chip, shape = topology.chip, list(topology.shape)
    if topology.slice_chips <= MAX_COMPILED_CHIPS:
        return topology
    if topology.slice_chips > chip.max_chips:
        raise UserError(f"--topology={topology.name}: a slice of {chip.name} has at most {chip.max_chips:,} chips")
    if any(size % _CUBE for size in shape):
        raise UserError(
            f"--topology={topology.name}: beyond {MAX_COMPILED_CHIPS} chips each axis is a multiple of {_CUBE}, "
            f"for example {chip.name}:8x8x8"
        )
    while (part := dataclasses.replace(topology, shape=tuple(shape))).slice_chips > MAX_COMPILED_CHIPS:
        longest = shape.index(max(shape))
        cubes = shape[longest] // _CUBE
        shape[longest] //= next(factor for factor in range(2, cubes + 1) if cubes % factor == 0)
    return part
