"""TPU slices: their chips, shape and collective bandwidth."""

import dataclasses
import math
import re

from bert_jax.chips import CHIPS, Chip
from bert_jax.errors import UserError

MAX_COMPILED_CHIPS = 256


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of a pod: the chip, the shape of a slice's torus, the number of slices."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def slice_chips(self) -> int:
        """Return the number of chips of one slice."""
        return math.prod(self.shape)

    @property
    def num_chips(self) -> int:
        """Return the number of chips of all slices."""
        return self.slices * self.slice_chips

    @property
    def slice_devices(self) -> int:
        """Return the number of jax's devices of one slice."""
        return self.slice_chips * self.chip.devices

    @property
    def num_devices(self) -> int:
        """Return the number of jax's devices of all slices."""
        return self.num_chips * self.chip.devices

    @property
    def slice_name(self) -> str:
        """Return libtpu's name of one slice, `v5e:4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """Return the name as in `--topology`: `v5e:4x4`, or `2xv5e:4x4` for two slices."""
        return self.slice_name if self.slices == 1 else f"{self.slices}x{self.slice_name}"

    def collective_bandwidth(self, group_size: int) -> float:
        """Return the bytes per second that a chip sends in a ring collective over `group_size` devices of its slice.

        Devices of one chip share its links: what one of them receives is passed on inside the chip. A group of all
        devices uses every axis; a smaller group is assumed to be along the longest axis. An axis with wrap-around links
        is used in both directions, a line in one. A three-dimensional slice has wrap-around links only if all its axes
        do.
        """
        axes = sorted((size for size in self.shape if size > 1), reverse=True)
        if group_size < self.slice_devices:
            axes = axes[:1]
        wraps = {size: size % self.chip.wraps_at == 0 for size in self.shape}
        if self.chip.dimensions == 3:
            wraps = dict.fromkeys(wraps, all(wraps.values()))
        links = sum(2 if wraps[size] else 1 for size in axes)
        return max(links, 1) * self.chip.link_bandwidth


def parse_topology(text: str) -> Topology:
    """Parse `v5e:4x4`; `v5p:2x2x4` has three axes, `2xv5e:4x4` two slices.

    Raises:
      UserError: if the form, the chip or the number of axes is wrong.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", text)
    example = "for example v5e:4x4, v5e:16x16, v6e:8x8, v5p:2x2x4, v4:2x2x4, tpu7x:2x2x1, two slices as 2xv5e:16x16"
    if not match:
        raise UserError(f"--topology={text}: write the chip and the shape, {example}")
    if match.group(2) not in CHIPS:
        raise UserError(f"--topology={text}: the chip must be one of {', '.join(CHIPS)}; {example}")
    chip = CHIPS[match.group(2)]
    shape = tuple(int(size) for size in match.group(3).split("x"))
    if len(shape) != chip.dimensions or min(shape) < 1:
        raise UserError(f"--topology={text}: a {chip.name} slice has {chip.dimensions} axes; {example}")
    return Topology(chip=chip, shape=shape, slices=int(match.group(1) or 1))
