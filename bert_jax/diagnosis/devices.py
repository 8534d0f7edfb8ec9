"""Check `devices`: what jax computes on."""

from collections import Counter
from typing import Any

import jax

from bert_jax.chips import CHIPS, peak_flops
from bert_jax.diagnosis.results import CheckResult, Context, ok
from bert_jax.parallel.distributed import check_all_joined
from bert_jax.planning.topology import Topology


def check(context: Context) -> CheckResult:
    """Return the devices.

    Raises:
      UserError: if the accelerator has hosts that were not found when the command started.
    """
    check_all_joined(context.hosts)
    devices = jax.devices()
    kinds = Counter(device.device_kind for device in devices)
    names = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    hosts = f"{jax.process_count()} host{'s' if jax.process_count() > 1 else ''}"
    first = devices[0]
    peak, memory = peak_flops(first.device_kind), memory_limit(jax.local_devices()[0])
    topology = topology_of(devices)
    coordinates = [str(tuple(device.coords)) for device in devices[:16] if hasattr(device, "coords")]
    more = " ..." if len(devices) > 16 and coordinates else ""
    return ok(
        f"{names}, {hosts}",
        [
            f"platform {first.platform}, {names}; {hosts} with {jax.local_device_count()} each",
            *(
                [f"slice: {topology.name if topology else 'not one that plan knows'}"]
                if first.platform == "tpu"
                else []
            ),
            *([f"coordinates: {' '.join(coordinates)}{more}"] if coordinates else []),
            f"memory of a device: {f'{memory / 2**30:.1f} GiB' if memory else 'unknown'}; data sheet's peak: "
            f"{f'{peak / 1e12:.0f} TFLOP/s' if peak else 'unknown'} in bfloat16",
        ],
    )


def memory_limit(device: Any) -> int | None:
    """Return the bytes that jax may use on a device of this host, None where the runtime does not say (a CPU)."""
    return (device.memory_stats() or {}).get("bytes_limit")


def topology_of(devices: list[Any]) -> Topology | None:
    """Return the slice of TPUs that `devices` are; None where they are something else or not a whole box."""
    chip = next((chip for chip in CHIPS.values() if chip.device_kind == devices[0].device_kind), None)
    if chip is None or not hasattr(devices[0], "coords"):
        return None
    axes = list(zip(*(device.coords for device in devices), strict=True))
    shape = tuple(max(axis) - min(axis) + 1 for axis in axes)[: chip.dimensions]
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    topology = Topology(chip=chip, shape=shape, slices=slices)
    return topology if topology.num_devices == len(devices) else None
