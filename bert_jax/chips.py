"""Data-sheet values of chips: peak, clock, memory and links of TPUs; the peak of other devices.

Sources:

* Peaks, dense bfloat16 FLOP/s of one device: Google Cloud TPU and NVIDIA data sheets.
* Memory and its bandwidth: Google Cloud's TPU pages; that of TPU7x gives that chip the links of a v5p.
* Link bandwidth, achieved in one direction: "How to Scale Your Model" (2025), chapter on TPUs. 45 GB/s on v4 and v5e,
  90 GB/s on v5p and v6e.
* Network bandwidth to other slices, per chip, over the data-center network: for v5e and v6e Google Cloud's page on v6e
  (6.4 and 25.6 Tb/s for 256 chips), for TPU7x its page, for v4 and v5p the same chapter.
* FLOP per cycle of each of a TPU7x's two devices: assumed to be a v6e's, which makes 2.2 GHz. By the compiler's
  estimate a matmul of 4,096 cubed reaches 81 % of it (v6e: 87 %).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation. Bytes are per chip, bandwidths bytes per second; `link_bandwidth` is of one link, one way."""

    name: str
    device_kind: str  # jax's name
    peak_flops: float
    flops_per_cycle: int
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int  # of the torus
    cores: int  # a kernel's sequences are divided among them; XLA's estimates are per chip
    wraps_at: int  # an axis of this many chips, or a multiple, is a ring; any other is a line
    max_chips: int  # of the largest slice
    network_bandwidth: float  # to other slices
    devices: int = 1  # of jax on one chip; the two cores of a v4 or v5p are one

    @property
    def device(self) -> "Chip":
        """Return the values of one of jax's devices: its part of peak and memory; the links are the chip's."""
        return dataclasses.replace(
            self,
            peak_flops=self.peak_flops / self.devices,
            flops_per_cycle=self.flops_per_cycle // self.devices,
            hbm_bytes=self.hbm_bytes // self.devices,
            hbm_bandwidth=self.hbm_bandwidth / self.devices,
            devices=1,
        )

    @property
    def clock(self) -> float:
        """Return cycles per second."""
        return self.peak_flops / self.flops_per_cycle


_GIB = 2**30
_FLAT = {"dimensions": 2, "cores": 1, "wraps_at": 16, "max_chips": 256}
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", "TPU v4", 275e12, 262144, 32 * _GIB, 1228e9, 45e9, 3, 2, 4, max_chips=4096, network_bandwidth=6.25e9
        ),
        Chip("v5e", "TPU v5 lite", 197e12, 131072, 16 * _GIB, 819e9, 45e9, **_FLAT, network_bandwidth=3.125e9),
        Chip(
            "v5p", "TPU v5", 459e12, 262144, 95 * _GIB, 2765e9, 90e9, 3, 2, 4, max_chips=6144, network_bandwidth=6.25e9
        ),
        Chip("v6e", "TPU v6 lite", 918e12, 524288, 32 * _GIB, 1640e9, 90e9, **_FLAT, network_bandwidth=12.5e9),
        Chip(
            "tpu7x",
            "TPU7x",
            2307e12,
            1048576,
            192 * _GIB,
            7380e9,
            90e9,
            dimensions=3,
            cores=1,
            wraps_at=4,
            max_chips=9216,
            network_bandwidth=12.5e9,
            devices=2,
        ),
    )
}
_BY_DEVICE_KIND = {chip.device_kind: chip for chip in CHIPS.values()} | {
    "TPU v5p": CHIPS["v5p"],
    "TPU v5e": CHIPS["v5e"],
    "TPU v6e": CHIPS["v6e"],
}
_PEAK_FLOPS = {
    **{kind: chip.device.peak_flops for kind, chip in _BY_DEVICE_KIND.items()},
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the TPU generation of jax's `device_kind`, or None for any other device."""
    return _BY_DEVICE_KIND.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """Return the peak of a device by jax's `device_kind`, or None if no data sheet states it (a CPU)."""
    return _PEAK_FLOPS.get(device_kind)
