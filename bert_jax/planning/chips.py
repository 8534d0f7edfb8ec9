"""State what is known of each TPU generation: clock, memory and links (the peak stands in `model/bert/flops.py`).

Memory and its bandwidth: Google Cloud's TPU pages. Link bandwidth is what a link carries one way in practice
("How to Scale Your Model", 2025, chapter on TPUs): v5e and v4 45 GB/s, v5p and v6e 90 GB/s.
"""

import dataclasses
import math
import re

from bert_jax.errors import UserError
from bert_jax.model.bert.flops import PEAK_FLOPS

MAX_COMPILED_CHIPS = 256


@dataclasses.dataclass(frozen=True)
class Chip:
    """Hold one generation; bytes are of one chip, bandwidths bytes a second, `link_bandwidth` of a link one way."""

    name: str
    device_kind: str
    flops_per_cycle: int
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int  # of the torus
    cores: int  # between which a kernel's rows are shared out; XLA's own estimates are of the whole chip
    wraps_at: int  # an axis of so many chips, or of a multiple, is a ring; a shorter one is a line
    max_chips: int  # of the largest slice

    @property
    def peak_flops(self) -> float:
        """Return dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.device_kind]

    @property
    def network_bandwidth(self) -> float:
        """Return the bytes a second that it sends to other slices."""
        return _NETWORK_BANDWIDTH[self.name]

    @property
    def clock(self) -> float:
        """Return cycles a second."""
        return self.peak_flops / self.flops_per_cycle


_GIB = 2**30
# Over the data-center network: a chip's share of its host's network cards. v5e and v6e: Google Cloud's page on v6e (6.4
# and 25.6 Tb/s for 256 chips); v4 and v5p: the chapter named above.
_NETWORK_BANDWIDTH = {"v4": 6.25e9, "v5e": 3.125e9, "v5p": 6.25e9, "v6e": 12.5e9}
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 262144, 32 * _GIB, 1228e9, 45e9, dimensions=3, cores=2, wraps_at=4, max_chips=4096),
        Chip("v5e", "TPU v5 lite", 131072, 16 * _GIB, 819e9, 45e9, dimensions=2, cores=1, wraps_at=16, max_chips=256),
        Chip("v5p", "TPU v5", 262144, 95 * _GIB, 2765e9, 90e9, dimensions=3, cores=2, wraps_at=4, max_chips=6144),
        Chip("v6e", "TPU v6 lite", 524288, 32 * _GIB, 1640e9, 90e9, dimensions=2, cores=1, wraps_at=16, max_chips=256),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of a pod: the chip, its count along each axis of a slice's torus, the number of slices."""

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
    def slice_name(self) -> str:
        """Return the name of one slice, which libtpu knows, `v5e:4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """Return the name that is typed: that of a slice, several as `2xv5e:4x4`."""
        return self.slice_name if self.slices == 1 else f"{self.slices}x{self.slice_name}"

    def collective_bandwidth(self, group_size: int) -> float:
        """Return the bytes a second that a chip sends in a ring collective over `group_size` chips of its slice.

        A group of all chips uses every axis, a smaller one is taken to lie along the longest. An axis that closes to a
        ring is used both ways, a line one way; a three-dimensional slice has rings only if all its axes do.
        """
        axes = sorted((size for size in self.shape if size > 1), reverse=True)
        if group_size < self.slice_chips:
            axes = axes[:1]
        wraps = {size: size % self.chip.wraps_at == 0 for size in self.shape}
        if self.chip.dimensions == 3:
            wraps = dict.fromkeys(wraps, all(wraps.values()))
        links = sum(2 if wraps[size] else 1 for size in axes)
        return max(links, 1) * self.chip.link_bandwidth


def parse_topology(text: str) -> Topology:
    """Parse `v5e:4x4`; `v5p:2x2x4` has three axes, `2xv5e:4x4` two slices.

    Raises:
      UserError: for another form, chip or number of axes.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", text)
    example = "for example v5e:4x4, v5e:16x16, v6e:8x8, v5p:2x2x4, v4:2x2x4, two slices as 2xv5e:16x16"
    if not match:
        raise UserError(f"--topology={text}: write chip and shape, {example}")
    if match.group(2) not in CHIPS:
        raise UserError(f"--topology={text}: the chip is one of {', '.join(CHIPS)}; {example}")
    chip = CHIPS[match.group(2)]
    shape = tuple(int(size) for size in match.group(3).split("x"))
    if len(shape) != chip.dimensions or min(shape) < 1:
        raise UserError(f"--topology={text}: a {chip.name} slice has {chip.dimensions} axes; {example}")
    return Topology(chip=chip, shape=shape, slices=int(match.group(1) or 1))
