"""Check `collectives`: the bandwidth of collectives over all devices, compared with what the links are said to carry.

Bus bandwidth is what a ring has to send per device and second, whatever the algorithm: (n - 1) / n of the buffer, twice
that for an all-reduce. It is what `plan` divides by.
"""

import statistics
import time
from collections.abc import Callable

import jax

from bert_jax.diagnosis.devices import topology_of
from bert_jax.diagnosis.results import CheckResult, Context, failed, ok, skipped
from bert_jax.parallel.collectives import KINDS, Collectives
from bert_jax.planning.collectives import fraction_moved
from bert_jax.progress import format_bytes

_ELEMENTS = {"cpu": 2**21}  # of a buffer; else:
_LARGE = 2**26
_ROUNDS = 7


def check(context: Context) -> CheckResult:
    """Measure each collective, and check that its sums are right."""
    devices = jax.devices()
    count = len(devices)
    if count == 1:
        return skipped("one device: nothing to exchange")
    collectives = Collectives(devices, elements=_ELEMENTS.get(devices[0].platform, _LARGE))
    topology = topology_of(devices)
    stated = topology.collective_bandwidth(topology.slice_devices) if topology and topology.slices == 1 else None
    lines, wrong, rates = [], [], []
    for kind in KINDS:
        operand = collectives.operand(kind)
        if not collectives.is_right(kind, operand):
            wrong.append(kind)
        seconds = _seconds(collectives.run(kind), operand)
        rates.append(collectives.buffer_bytes * fraction_moved(kind, count) / seconds / 1e9)
        compared = f", {rates[-1] * 1e9 / stated:.0%} of stated" if stated else ""
        lines.append(
            f"{kind:<15} {format_bytes(collectives.buffer_bytes)} in {seconds * 1e3:.2f} ms: bus {rates[-1]:.2f} GB/s"
            + compared
        )
        del operand
    lines.append(
        f"stated: {stated / 1e9:.0f} GB/s per chip over all axes of {topology.name} (bert_jax/chips.py)"
        if stated and topology
        else "stated: none known for these devices (bert_jax/chips.py has one slice of TPUs)"
    )
    if wrong:
        return failed(f"{', '.join(wrong)} over {count} devices: sums are wrong", lines)
    compared = f", stated {stated / 1e9:.0f}" if stated else ""
    return ok(f"bus bandwidth {min(rates):.2f} to {max(rates):.2f} GB/s over {count} devices{compared}", lines)


def _seconds(run: Callable[[jax.Array], jax.Array], operand: jax.Array) -> float:
    jax.block_until_ready(run(operand))
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run(operand))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
