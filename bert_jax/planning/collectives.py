"""Find a program's collectives and how long they leave the chip without work.

A ring over n chips moves (n - 1) / n of the buffer for a gather or a scatter, twice that for a reduction that everyone
gets. The schedule is gone through with a clock for the chip and one for each network: a collective begins when it is
started and its network is free; the chip waits for it where it is synchronous, or where its end is asked for too early.

What crosses the network between slices is a `send` and a `recv` of the same rendezvous, served by the hosts
("megascale"): it begins at the `send` and ends at the `recv-done`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from bert_jax.planning.hlo import COLLECTIVES, HloProgram, Instruction
from bert_jax.planning.topology import Topology

_GROUPS = (re.compile(r"replica_groups=\{\{([\d,]+)\}"), re.compile(r"replica_groups=\[(\d+),(\d+)\]"))
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
# The names that the compiler gives the fusions it wraps a collective's beginning and end in.
_WRAPPED = re.compile(r"async-collective-(start|done)")
_LOOPS = ("while", "call")
LINKS, NETWORK = "links", "network"  # between the chips of a slice, and between slices
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_MEGASCALE_TYPE = re.compile(r'_xla_megascale_transfer_type="([^"]*)"')
_MEGASCALE_SLICES = re.compile(r'_xla_megascale_target="\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Hold one collective: `bytes` of its whole buffer, `seconds` on its network, and of these `exposed_seconds`."""

    kind: str
    bytes: int
    group_size: int
    times: int
    overlapped: bool
    seconds: float
    exposed_seconds: float
    network: str = LINKS


def find_collectives(
    program: HloProgram,
    *,
    topology: Topology,
    kernel_cycles: Mapping[str, int] | None = None,
    num_chips: int = 0,
    spans: Callable[[int], int] = lambda size: size,
) -> list[Collective]:
    """Return the collectives of one step; seconds are of one run, which the step makes `times` of.

    `kernel_cycles` are those of our own kernels by the instruction's name, which the program does not state. A program
    compiled for slices of fewer chips than `topology` has says so in `num_chips`, and `spans` gives the size on
    `topology` of a group that has so many chips of a slice in the program.
    """
    num_chips = num_chips or topology.slice_chips
    return _Walk(program, topology, num_chips, spans, kernel_cycles or {}).computation(program.entry, times=1)


class _Walk:
    def __init__(
        self,
        program: HloProgram,
        topology: Topology,
        num_chips: int,
        spans: Callable[[int], int],
        kernel_cycles: Mapping[str, int],
    ):
        self._program, self._topology, self._kernel_cycles = program, topology, kernel_cycles
        self._num_chips, self._spans = num_chips, spans

    def computation(self, name: str, *, times: int) -> list[Collective]:
        """Go through one computation; loops inside are gone through once and count as often as they run."""
        found: list[Collective] = []
        now, free = 0.0, {LINKS: 0.0, NETWORK: 0.0}
        under_way: dict[str, tuple[int, float]] = {}  # by what carries it on: place in `found`, when it ends
        for item in self._program.computations[name]:
            carried = next((under_way[operand] for operand in item.operands if operand in under_way), None)
            if item.opcode in _LOOPS:
                for body in item.called:
                    found += self.computation(body, times=times * (self._program.trips(item) or 1))
            now += self._seconds(item)
            if carried and (item.opcode.endswith("-done") or _wrapped(item) == "done"):
                place, end = carried
                found[place] = dataclasses.replace(found[place], exposed_seconds=max(0.0, end - now))
                now = max(now, end)
            elif carried and (item.opcode.endswith("-update") or _hands_on(self._program, item)):
                under_way[item.name] = carried
            elif (begun := self._begun(item, computation=name, times=times)) is not None:
                made, carrier = begun
                end = max(now, free[made.network]) + made.seconds
                free[made.network] = end
                if made.overlapped:
                    under_way[carrier] = (len(found), end)
                else:
                    made = dataclasses.replace(made, exposed_seconds=end - now)
                    now = end
                found.append(made)
        return found

    def _begun(self, item: Instruction, *, computation: str, times: int) -> tuple[Collective, str] | None:
        """Return the collective that an instruction begins, and the name of the instruction that carries it on."""
        if item.opcode == "send" and _MEGASCALE_TYPE.search(item.text):
            received = self._received(item, computation=computation)
            return self._between_slices(item, received, times=times), received.name
        inner = _collective_of(self._program, item)
        if inner is None or _group_size(inner, self._num_chips) == 1:
            return None
        started = item.opcode.endswith("-start") or _wrapped(item) == "start"
        return self._collective(item, inner, times=times, overlapped=started), item.name

    def _received(self, sent: Instruction, *, computation: str) -> Instruction:
        rendezvous = _RENDEZVOUS.findall(sent.text)
        return next(
            item
            for item in self._program.computations[computation]
            if item.opcode == "recv" and _RENDEZVOUS.findall(item.text) == rendezvous
        )

    def _between_slices(self, sent: Instruction, received: Instruction, *, times: int) -> Collective:
        kind = _first(_MEGASCALE_TYPE, sent).lower().replace("_", "-")
        size = len(_first(_MEGASCALE_SLICES, sent).split(","))
        moved = max(sent.bytes, received.bytes) - 4  # their tuples hold a u32[] too
        return Collective(
            kind=kind,
            bytes=moved,
            group_size=size,
            times=times,
            overlapped=True,
            seconds=moved * fraction_moved(kind, size) / self._topology.chip.network_bandwidth,
            exposed_seconds=0.0,
            network=NETWORK,
        )

    def _seconds(self, item: Instruction) -> float:
        cycles = item.cycles or self._kernel_cycles.get(item.name, 0)
        if item.opcode in _LOOPS:
            inside = (self._program.computations[name] for name in item.called)
            seconds = sum(self._seconds(inner) for body in inside for inner in body)
            return seconds * (self._program.trips(item) or 1)
        return cycles / self._topology.chip.clock

    def _collective(self, item: Instruction, inner: Instruction, *, times: int, overlapped: bool) -> Collective:
        kind = next(kind for kind in COLLECTIVES if inner.opcode.startswith(kind))
        size = _group_size(inner, self._num_chips)
        moved = inner.bytes
        if inner.opcode in ("all-gather-start", "collective-permute-start"):  # gives (what went in, what comes out)
            given = filter(None, map(self._program.named, inner.operands))
            operands = sum(operand.bytes for operand in given)
            moved = max(moved - operands, operands)
        elif kind == "reduce-scatter":
            moved *= size
        elif kind == "all-reduce" and item.opcode == "fusion" and not overlapped and item.bytes * size <= moved:
            kind = "reduce-scatter"  # a reduction fused with the slice that is kept of it
        size = self._spans(size)
        return Collective(
            kind=kind,
            bytes=moved,
            group_size=size,
            times=times,
            overlapped=overlapped,
            seconds=moved * fraction_moved(kind, size) / self._topology.collective_bandwidth(size),
            exposed_seconds=0.0,
        )


def fraction_moved(kind: str, size: int) -> float:
    """Return what part of its buffer a chip sends in a ring over `size` chips."""
    return {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(kind, (size - 1) / size)


def _first(pattern: re.Pattern[str], item: Instruction) -> str:
    match = pattern.search(item.text)
    return match.group(1) if match else ""


def _wrapped(item: Instruction) -> str:
    match = _WRAPPED.match(item.name) if item.opcode == "fusion" else None
    return match.group(1) if match else ""


def _hands_on(program: HloProgram, item: Instruction) -> bool:
    """Say whether an instruction that takes a collective under way passes it on: a part of a tuple, or a fusion.

    Such a fusion computes something else while the collective inside it goes on.
    """
    return item.opcode == "get-tuple-element" or (
        item.opcode == "fusion" and not _wrapped(item) and _collective_of(program, item) is not None
    )


def _collective_of(program: HloProgram, item: Instruction) -> Instruction | None:
    """Return the collective that an instruction begins: itself, or what a fusion or an asynchronous call holds."""
    if item.opcode.startswith(COLLECTIVES):
        return None if item.opcode.endswith("-done") else item
    if item.opcode not in ("fusion", "async-start") or _wrapped(item) == "done":
        return None
    inside = (inner for name in item.called for inner in program.computations.get(name, ()))
    return next((inner for inner in inside if inner.opcode.startswith(COLLECTIVES)), None)


def _group_size(item: Instruction, num_chips: int) -> int:
    for pattern in _GROUPS:
        match = pattern.search(item.text)
        if match:
            return int(match.group(2)) if pattern is _GROUPS[1] else len(match.group(1).split(","))
    match = _MESH_GROUPS.search(item.text)
    if match:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match.group(1)))
        size = 1
        for axis in re.findall(r"'([^']+)'", match.group(2)):
            size *= int(sizes.get(axis, 1))
        return size
    return num_chips
