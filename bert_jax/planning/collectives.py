"""The collectives of a compiled program, and how long the chip waits for them.

On a ring of n chips, an all-gather or reduce-scatter sends (n - 1) / n of its buffer, an all-reduce twice that. The
schedule is simulated with a clock for the chip and one for each network. A collective starts once it is issued and its
network is free. The chip waits for it if it is synchronous, or if its `-done` instruction comes before it ends.

On a SparseCore a collective is an `async-start` without operands, which only prepares it, an `async-update` with what
is to be moved, where it starts, and an `async-done`.

A transfer between slices is a `send` and a `recv` with the same rendezvous name, which the hosts serve ("megascale").
It starts at the `send` and ends at the `recv-done`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from bert_jax.planning.hlo import COLLECTIVES, HloProgram, Instruction
from bert_jax.planning.topology import Topology

_GROUPS = (re.compile(r"replica_groups=\{\{([\d,]+)\}"), re.compile(r"replica_groups=\[(\d+),(\d+)\]"))
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
# The compiler's names for the fusions that contain the start or the end of a collective.
_WRAPPED = re.compile(r"async-collective-(start|done)")
_LOOPS = ("while", "call")
LINKS, NETWORK = "links", "network"  # between the chips of a slice, and between slices
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_MEGASCALE_TYPE = re.compile(r'_xla_megascale_transfer_type="([^"]*)"')
SYNCHRONOUS, QUEUED, SHORT = "synchronous", "earlier collectives on the links", "computation between start and end"
LIMITS = (SYNCHRONOUS, QUEUED, SHORT)
_NOTHING = 1e-9  # seconds
_MEGASCALE_SLICES = re.compile(r'_xla_megascale_target="\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective: `bytes` of its whole buffer, `seconds` it takes, and `exposed_seconds` the chip waits for it.

    Attributes:
      queued_seconds: the part of `exposed_seconds` in which it waits for earlier ones on the same network.
      issued_seconds: when the chip issues it, since the beginning of the step; in a loop, the first time.
      fused: whether computation that hides it is in one fusion with it. What that costs the computation, in matrix
        units and memory bandwidth, is in no estimate.
    """

    kind: str
    bytes: int
    group_size: int
    times: int
    overlapped: bool
    seconds: float
    exposed_seconds: float
    network: str = LINKS
    queued_seconds: float = 0.0
    issued_seconds: float = 0.0
    fused: bool = False

    @property
    def limit(self) -> str:
        """Return why the chip waits for it: one of `LIMITS`, or "" if it does not."""
        if self.exposed_seconds <= _NOTHING:
            return ""
        if not self.overlapped:
            return SYNCHRONOUS
        return QUEUED if self.queued_seconds > self.exposed_seconds / 2 else SHORT


def find_collectives(
    program: HloProgram,
    *,
    topology: Topology,
    own_cycles: Mapping[str, int] | None = None,
    num_devices: int = 0,
    spans: Callable[[int], int] = lambda size: size,
) -> list[Collective]:
    """Return the collectives of one step. Each runs `times` times per step; its seconds are those of one run.

    Args:
      program: the compiled step.
      topology: the slices to plan for.
      own_cycles: cycles by instruction name where the program states none: of Pallas kernels, of uncounted matmuls.
      num_devices: devices per slice that the program was compiled for, if fewer than `topology` has.
      spans: from a group's size in the program to its size on `topology`.
    """
    num_devices = num_devices or topology.slice_devices
    simulation = _Simulation(program, topology, num_devices, spans, own_cycles or {})
    return simulation.computation(program.entry, times=1, since=0.0)


class _Simulation:
    def __init__(
        self,
        program: HloProgram,
        topology: Topology,
        num_devices: int,
        spans: Callable[[int], int],
        own_cycles: Mapping[str, int],
    ):
        self._program, self._topology, self._own_cycles = program, topology, own_cycles
        self._num_devices, self._spans = num_devices, spans
        self._prepared: dict[str, Instruction] = {}  # name of an `async-start` -> the collective that it prepares

    def computation(self, name: str, *, times: int, since: float) -> list[Collective]:
        """Return the collectives of a computation that begins at `since`.

        The body of a loop is simulated once and counted per iteration.
        """
        collectives: list[Collective] = []
        now, free = 0.0, {LINKS: 0.0, NETWORK: 0.0}
        pending: dict[str, tuple[int, float]] = {}  # instruction name -> index in `collectives`, end time
        for item in self._program.computations[name]:
            operand = next((pending[name] for name in item.operands if name in pending), None)
            if item.opcode in _LOOPS:
                for body in item.called:
                    trips = self._program.trips(item) or 1
                    collectives += self.computation(body, times=times * trips, since=since + now)
            now += self._seconds(item)
            if operand and (item.opcode.endswith("-done") or _wrapped(item) == "done"):
                index, end = operand
                exposed, queued = max(0.0, end - now), collectives[index].queued_seconds
                collectives[index] = dataclasses.replace(
                    collectives[index], exposed_seconds=exposed, queued_seconds=min(exposed, queued)
                )
                now = max(now, end)
            elif operand and (item.opcode.endswith("-update") or _forwards(self._program, item)):
                pending[item.name] = operand
                if item.opcode == "fusion":
                    collectives[operand[0]] = dataclasses.replace(collectives[operand[0]], fused=True)
            elif (start := self._started_by(item, computation=name, times=times)) is not None:
                collective, handle = start
                begin = max(now, free[collective.network])
                free[collective.network] = end = begin + collective.seconds
                collective = dataclasses.replace(collective, queued_seconds=begin - now, issued_seconds=since + now)
                if collective.overlapped:
                    pending[handle] = (len(collectives), end)
                else:
                    collective = dataclasses.replace(collective, exposed_seconds=end - now)
                    now = end
                collectives.append(collective)
        return collectives

    def _started_by(self, item: Instruction, *, computation: str, times: int) -> tuple[Collective, str] | None:
        """Return the collective that an instruction starts, and the instruction name that later operands refer to."""
        if item.opcode == "send" and _MEGASCALE_TYPE.search(item.text):
            recv = self._recv_of(item, computation=computation)
            return self._between_slices(item, recv, times=times), recv.name
        if self._is_prepared(item):
            return None
        prepared = next((self._prepared[name] for name in item.operands if name in self._prepared), None)
        inner = prepared or collective_of(self._program, item)
        if inner is None or _group_size(inner, self._num_devices) == 1:
            return None
        is_async = bool(prepared) or item.opcode.endswith("-start") or _wrapped(item) == "start"
        return self._collective(item, inner, times=times, overlapped=is_async), item.name

    def _is_prepared(self, item: Instruction) -> bool:
        """Return whether an instruction prepares a collective for a SparseCore; remember the collective."""
        if item.opcode != "async-start" or item.operands:
            return False
        inner = collective_of(self._program, item)
        if inner is not None:
            self._prepared[item.name] = inner
        return inner is not None

    def _recv_of(self, send: Instruction, *, computation: str) -> Instruction:
        rendezvous = _RENDEZVOUS.findall(send.text)
        return next(
            item
            for item in self._program.computations[computation]
            if item.opcode == "recv" and _RENDEZVOUS.findall(item.text) == rendezvous
        )

    def _between_slices(self, send: Instruction, recv: Instruction, *, times: int) -> Collective:
        kind = _first(_MEGASCALE_TYPE, send).lower().replace("_", "-")
        size = len(_first(_MEGASCALE_SLICES, send).split(","))
        moved = max(send.bytes, recv.bytes) - 4  # their tuples also have a u32[]
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
        cycles = item.cycles or self._own_cycles.get(item.name, 0)
        if item.opcode in _LOOPS:
            inside = (self._program.computations[name] for name in item.called)
            seconds = sum(self._seconds(inner) for body in inside for inner in body)
            return seconds * (self._program.trips(item) or 1)
        return cycles / self._topology.chip.clock

    def _collective(self, item: Instruction, inner: Instruction, *, times: int, overlapped: bool) -> Collective:
        kind = next(kind for kind in COLLECTIVES if inner.opcode.startswith(kind))
        size = _group_size(inner, self._num_devices)
        moved = inner.bytes
        if inner.opcode in ("all-gather-start", "collective-permute-start"):  # the result is (input, output)
            operands = filter(None, map(self._program.named, inner.operands))
            input_bytes = sum(operand.bytes for operand in operands)
            moved = max(moved - input_bytes, input_bytes)
        elif kind == "reduce-scatter":
            moved *= size
        elif kind == "all-reduce" and item.opcode == "fusion" and not overlapped and item.bytes * size <= moved:
            kind = "reduce-scatter"  # an all-reduce fused with a slice of its result
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
    """Return the fraction of its buffer that a chip sends in a ring of `size` chips."""
    return {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(kind, (size - 1) / size)


def _first(pattern: re.Pattern[str], item: Instruction) -> str:
    match = pattern.search(item.text)
    return match.group(1) if match else ""


def _wrapped(item: Instruction) -> str:
    match = _WRAPPED.match(item.name) if item.opcode == "fusion" else None
    return match.group(1) if match else ""


def _forwards(program: HloProgram, item: Instruction) -> bool:
    """Return whether an instruction forwards a pending collective: a tuple element, or a fusion that contains it.

    Such a fusion computes something else while the collective continues.
    """
    return item.opcode == "get-tuple-element" or (
        item.opcode == "fusion" and not _wrapped(item) and collective_of(program, item) is not None
    )


def collective_of(program: HloProgram, item: Instruction) -> Instruction | None:
    """Return the collective that an instruction starts: itself, or the one inside a fusion or an asynchronous call."""
    if item.opcode.startswith(COLLECTIVES):
        return None if item.opcode.endswith("-done") else item
    # A SparseCore's call is a custom call inside an asynchronous one.
    if item.opcode not in ("fusion", "async-start", "custom-call") or _wrapped(item) == "done":
        return None
    inside = (inner for name in item.called for inner in program.computations.get(name, ()))
    started = (inner if inner.opcode.startswith(COLLECTIVES) else _of_call(program, inner) for inner in inside)
    return next(filter(None, started), None)


def _of_call(program: HloProgram, item: Instruction) -> Instruction | None:
    return collective_of(program, item) if item.opcode == "custom-call" else None


def _group_size(item: Instruction, num_devices: int) -> int:
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
    return num_devices
