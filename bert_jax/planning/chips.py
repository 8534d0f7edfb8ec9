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
    def clock(self) -> float:
        """Return cycles a second."""
        return self.peak_flops / self.flops_per_cycle


_GIB = 2**30
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
    """Hold a pod slice: the chip and its count along each axis of the torus."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """Return the number of chips."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """Return the name that is typed and that libtpu knows, `v5e:4x4`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def collective_bandwidth(self, group_size: int) -> float:
        """Return the bytes a second that a chip sends in a ring collective over `group_size` chips.

        A group of all chips uses every axis, a smaller one is taken to lie along the longest. An axis that closes to a
        ring is used both ways, a line one way; a three-dimensional slice has rings only if all its axes do.
        """
        axes = sorted((size for size in self.shape if size > 1), reverse=True)
        if group_size < self.num_chips:
            axes = axes[:1]
        wraps = {size: size % self.chip.wraps_at == 0 for size in self.shape}
        if self.chip.dimensions == 3:
            wraps = dict.fromkeys(wraps, all(wraps.values()))
        links = sum(2 if wraps[size] else 1 for size in axes)
        return max(links, 1) * self.chip.link_bandwidth


def parse_topology(text: str) -> Topology:
    """Parse `v5e:4x4`; `v5p:2x2x4` has three axes.

    Raises:
      UserError: for another form, chip or number of axes.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text)
    example = "for example v5e:4x4, v5e:16x16, v6e:8x8, v5p:2x2x4, v4:2x2x4"
    if not match:
        raise UserError(f"--topology={text}: write chip and shape, {example}")
    if match.group(1) not in CHIPS:
        raise UserError(f"--topology={text}: the chip is one of {', '.join(CHIPS)}; {example}")
    chip = CHIPS[match.group(1)]
    shape = tuple(int(size) for size in match.group(2).split("x"))
    if len(shape) != chip.dimensions or min(shape) < 1:
        raise UserError(f"--topology={text}: a {chip.name} slice has {chip.dimensions} axes; {example}")
    return Topology(chip=chip, shape=shape)
