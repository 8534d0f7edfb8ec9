"""Plans of large slices, scaled up from the program of a smaller slice of the same chips.

Every chip does the same work in both: the same number of sequences, the same weights, the same collectives over the
same buffers. The rings are scaled to the length and the links of the large slice. The memory of the sharded state is
not scaled; it is smaller on more chips, so the plan has an upper bound.
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

_CUBE = 4  # large three-dimensional slices consist of cubes of 4 x 4 x 4 chips


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The program to compile for a plan: `config` on `part`, a slice that is 1/`times` of the whole slice."""

    config: Config
    part: Topology
    times: int = 1
    axis: str = ""  # the mesh axis that is `times` as long on the whole slice; "" if the whole slice is compiled
    axis_size: int = 1  # its length in the compiled program

    def group_size(self, compiled: int) -> int:
        """Return the group size on the whole slice of a collective over `compiled` chips of the part."""
        along = self.times > 1 and compiled % self.axis_size == 0
        return compiled * self.times if along else compiled

    def phase(self, phase: Phase) -> Phase:
        """Return a compiled phase with the batch size of the whole slice."""
        return dataclasses.replace(phase, batch_size=phase.batch_size * self.times)

    def mesh_shape(self, compiled: dict[str, int]) -> dict[str, int]:
        """Return the mesh of the whole slice."""
        return compiled | ({self.axis: compiled[self.axis] * self.times} if self.axis else {})


def scale_down(config: Config, *, topology: Topology) -> Scaling:
    """Return what to compile for a run on `topology`: the whole up to 256 chips per slice, else a part.

    The number of sequences per chip stays the same.

    Raises:
      UserError: if there is no such slice, or the config does not divide over it.
    """
    part = compiled_part(topology)
    if part == topology:
        return Scaling(config, part)
    times = topology.num_chips // part.num_chips
    sizes = meshes.axis_sizes(config.mesh, count=topology.num_devices)
    validate_for_mesh(config, mesh=AbstractMesh(tuple(sizes.values()), tuple(sizes)))
    if config.optimizer.clip_replicas > 1:
        raise UserError(
            f"config.optimizer.clip_replicas={config.optimizer.clip_replicas} depends on the number of chips and "
            f"cannot be scaled: plan at most {MAX_COMPILED_CHIPS} chips, or set it to 1"
        )
    axis = next((axis for axis in STATE_AXES if sizes[axis] % times == 0 and sizes[axis] > times), None)
    if axis is None:
        raise UserError(
            f"config.mesh: neither {' nor '.join(f'{axis}={sizes[axis]}' for axis in STATE_AXES)} is a multiple of "
            f"{times}, the ratio of {topology.name} to {part.name}, for which the step is compiled: choose another mesh"
        )
    sizes[axis] //= times
    phases = tuple(dataclasses.replace(phase, batch_size=phase.batch_size // times) for phase in config.train.phases)
    train = dataclasses.replace(config.train, batch_size=config.train.batch_size // times, phases=phases)
    mesh = dataclasses.replace(config.mesh, **sizes)
    small = dataclasses.replace(config, train=train, mesh=mesh)
    return Scaling(small, part, times=times, axis=axis, axis_size=sizes[axis])


def compiled_part(topology: Topology) -> Topology:
    """Return `topology` itself, or above 256 chips per slice the largest part that dividing its axes gives.

    Raises:
      UserError: if there is no slice of this size.
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
