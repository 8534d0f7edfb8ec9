"""Read the text of a compiled TPU program: instructions, loops, and the compiler's own estimates.

The TPU compiler writes `"estimated_cycles"` into the backend config of each fusion it schedules. A loop body counts as
often as it is run (its `known_trip_count`, or the constant that its condition compares the counter with). Not every
operation has an estimate: collectives, Pallas kernels, sorts, scatters. They are listed, so that whoever adds up can
add them from bandwidths and stated costs.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# Bytes an element in HLO's spelling of dtypes; predicates take a byte.
_ITEM_BYTES = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_IN_VMEM = "S(1)"  # in a layout
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-<>]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-<>]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"(calls|body|to_apply|called_computations|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-<>]+)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_OPERAND = re.compile(r"%([\w.\-<>]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Hold one instruction: `bytes` of its result, its `cycles` if the compiler estimates them."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    cycles: int | None
    trips: int | None
    constant: int | None
    op_name: str
    target: str  # of a custom call
    condition: str  # of a while loop
    text: str

    @property
    def bytes(self) -> int:
        """Return the size of the result, all parts of a tuple together."""
        return shape_bytes(self.shape)

    @property
    def hbm_bytes(self) -> int:
        """Return how much of the result lies in HBM: the compiler keeps in VMEM what is soon used."""
        return shape_bytes(self.shape, in_vmem=False)


@dataclasses.dataclass(frozen=True)
class Visit:
    """Hold an instruction and how often a step runs it."""

    instruction: Instruction
    times: int


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """Hold a compiled program's computations by name."""

    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]

    def visits(self) -> Iterator[Visit]:
        """Go through what a step runs, loops and calls entered, fusions not (their estimate covers what is inside)."""
        yield from self._visit(self.entry, 1)

    def _visit(self, computation: str, times: int) -> Iterator[Visit]:
        for instruction in self.computations[computation]:
            yield Visit(instruction, times)
            if instruction.opcode in ("while", "call", "async-start"):
                for name in instruction.called:
                    yield from self._visit(name, times * (self.trips(instruction) or 1))
            elif instruction.opcode == "conditional":
                # A step has one: the search for values that are not finite, whose long branch never runs in health.
                yield from self._visit(min(instruction.called, key=self.cycles_of), times)

    def trips(self, instruction: Instruction) -> int | None:
        """Return how often a loop runs its body (1 for what is no loop), None where that depends on data."""
        if instruction.trips is not None or instruction.opcode != "while":
            return instruction.trips or 1
        body = {item.name: item for item in self.computations[instruction.condition]}
        compare = next(iter(reversed(body.values())))
        limits = [body[name].constant for name in compare.operands if name in body and body[name].constant is not None]
        return limits[0] if compare.opcode == "compare" and "direction=LT" in compare.text and limits else None

    def named(self, name: str) -> Instruction | None:
        """Return the instruction of that name; names are unique in a program."""
        return next((item for body in self.computations.values() for item in body if item.name == name), None)

    def cycles(self) -> int:
        """Return the compiler's estimate for one run, of all that has one."""
        return self.cycles_of(self.entry)

    def cycles_of(self, computation: str) -> int:
        """Return the estimate for one run of a computation."""
        return sum((visit.instruction.cycles or 0) * visit.times for visit in self._visit(computation, 1))


def shape_bytes(shape: str, *, in_vmem: bool = True) -> int:
    """Return the bytes of a shape as HLO spells it, `(f32[2,3]{1,0}, bf16[4]{0:S(1)})`; without `in_vmem` of HBM."""
    total = 0
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        if dtype in _ITEM_BYTES and (in_vmem or _IN_VMEM not in layout):
            size = _ITEM_BYTES[dtype]
            for dimension in filter(None, dimensions.split(",")):
                size *= int(dimension)
            total += size
    return total


def parse_hlo(text: str) -> HloProgram:
    """Parse the text that `compiled.as_text()` returns.

    Raises:
      ValueError: if it has no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, body = "", "", []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            name, body = head.group(2), []
            entry = name if head.group(1) else entry
        elif line.startswith("}"):
            computations[name] = tuple(body)
        else:
            match = _INSTRUCTION.match(line)
            if match:
                body.append(_instruction(*match.groups()))
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    return HloProgram(entry=entry, computations=computations)


def _instruction(name: str, rest: str) -> Instruction:
    found = _OPCODE.search(rest)
    opcode = found.group(1) if found else ""
    shape = rest[: found.start()] if found else rest
    inner = rest[found.end() :] if found else ""
    end = _closing_parenthesis(inner)
    operands, attributes = inner[:end], inner[end:]
    called: list[str] = []
    for kind, names in _CALLED.findall(attributes):
        if kind != "to_apply" or opcode in ("call", "async-start"):
            called += _OPERAND.findall(names)
    cycles = _CYCLES.search(attributes)
    trips = _TRIPS.search(attributes)
    op_name = _OP_NAME.search(attributes)
    condition = re.search(r"condition=%([\w.\-<>]+)", attributes)
    target = re.search(r'custom_call_target="([^"]*)"', attributes)
    return Instruction(
        name=name,
        opcode=opcode,
        shape=shape,
        operands=tuple(_OPERAND.findall(operands)),
        called=tuple(called),
        cycles=int(cycles.group(1)) if cycles else None,
        trips=int(trips.group(1)) if trips else None,
        constant=int(inner[:end]) if opcode == "constant" and inner[:end].isdigit() else None,
        op_name=op_name.group(1) if op_name else "",
        target=target.group(1) if target else "",
        condition=condition.group(1) if condition else "",
        text=attributes,
    )


def _closing_parenthesis(text: str) -> int:
    """Return where the list that begins before `text` ends; layouts such as `T(8,128)` have their own."""
    depth = 1
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return place
    return len(text)
