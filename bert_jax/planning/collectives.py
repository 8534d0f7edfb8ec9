"""Find a program's collectives and how long they leave the chip without work.

A ring over n chips moves (n - 1) / n of the buffer for a gather or a scatter, twice that for a reduction that everyone
gets. A synchronous collective is exposed whole; one with a start and a done only as far as it takes longer than the
compiler's estimate of what is scheduled between the two.
"""

import dataclasses
import re
from collections.abc import Iterator

from bert_jax.planning.chips import Topology
from bert_jax.planning.hlo import COLLECTIVES, HloProgram, Instruction

_GROUPS = (re.compile(r"replica_groups=\{\{([\d,]+)\}"), re.compile(r"replica_groups=\[(\d+),(\d+)\]"))
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
# The name of the pass's output for a start and done that are wrapped in fusions.
_WRAPPED = re.compile(r"async-collective-(start|done)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Hold one collective: `bytes` of its whole buffer, `seconds` on the links, and of these `exposed_seconds`."""

    kind: str
    bytes: int
    group_size: int
    times: int
    overlapped: bool
    seconds: float
    exposed_seconds: float


def find_collectives(program: HloProgram, *, topology: Topology) -> list[Collective]:
    """Return the collectives of one step; seconds are of one run, which the step makes `times` of."""
    return list(_find(program, program.entry, 1, topology))


def _find(program: HloProgram, computation: str, times: int, topology: Topology) -> Iterator[Collective]:
    instructions = program.computations[computation]
    carriers: set[str] = set()  # what hands on a collective that has been started
    for place, instruction in enumerate(instructions):
        if carriers & set(instruction.operands) and instruction.opcode in ("get-tuple-element", "fusion"):
            if instruction.opcode == "get-tuple-element" or _collective_of(program, instruction):
                carriers.add(instruction.name)
            continue
        if instruction.opcode in ("while", "call"):
            for name in instruction.called:
                yield from _find(program, name, times * (program.trips(instruction) or 1), topology)
            continue
        inner = _collective_of(program, instruction)
        if inner is None:
            continue
        kind = next(kind for kind in COLLECTIVES if inner.opcode.startswith(kind))
        size = _group_size(inner, topology.num_chips)
        if size == 1:
            continue
        start = instruction.opcode.endswith("-start") or _wrapped(instruction) == "start"
        if instruction.opcode == "fusion":
            carriers.add(instruction.name)
        moved = inner.bytes
        if inner.opcode.endswith("-start"):  # its result is (operands, results)
            moved = max(moved // 2, 1)
        elif kind == "reduce-scatter":
            moved *= size
        share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(kind, (size - 1) / size)
        seconds = moved * share / topology.collective_bandwidth(size)
        hidden = _cycles_until_done(program, instructions, place) / topology.chip.clock if start else 0.0
        yield Collective(
            kind=kind,
            bytes=moved,
            group_size=size,
            times=times,
            overlapped=start,
            seconds=seconds,
            exposed_seconds=max(0.0, seconds - hidden),
        )


def _wrapped(instruction: Instruction) -> str:
    match = _WRAPPED.match(instruction.name) if instruction.opcode == "fusion" else None
    return match.group(1) if match else ""


def _collective_of(program: HloProgram, instruction: Instruction) -> Instruction | None:
    """Return the collective that an instruction begins: itself, or what a fusion around one holds."""
    if instruction.opcode.startswith(COLLECTIVES):
        return None if instruction.opcode.endswith("-done") else instruction
    if instruction.opcode != "fusion" or _wrapped(instruction) == "done":
        return None
    inside = (item for name in instruction.called for item in program.computations.get(name, ()))
    return next((item for item in inside if item.opcode.startswith(COLLECTIVES)), None)


def _group_size(instruction: Instruction, num_chips: int) -> int:
    for pattern in _GROUPS:
        match = pattern.search(instruction.text)
        if match:
            return int(match.group(2)) if pattern is _GROUPS[1] else len(match.group(1).split(","))
    match = _MESH_GROUPS.search(instruction.text)
    if match:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match.group(1)))
        size = 1
        for axis in re.findall(r"'([^']+)'", match.group(2)):
            size *= int(sizes.get(axis, 1))
        return size
    return num_chips


def _cycles_until_done(program: HloProgram, instructions: tuple[Instruction, ...], place: int) -> int:
    """Return the estimated cycles of what is scheduled between a start and the first use of what it returns as done."""
    waiting, cycles = {instructions[place].name}, 0
    for later in instructions[place + 1 :]:
        if waiting & set(later.operands):
            if later.opcode == "get-tuple-element":
                waiting.add(later.name)
                continue
            if later.opcode.endswith("-done") or _wrapped(later) == "done":
                break
            waiting.add(later.name)  # a fusion that computes and carries the collective on
        cycles += later.cycles or 0
        if later.opcode in ("while", "call"):
            cycles += (program.trips(later) or 1) * sum(program.cycles_of(name) for name in later.called)
    return cycles
