"""A parser for compiled TPU programs: instructions, loops, and the compiler's estimates.

The TPU compiler writes `"estimated_cycles"` into the backend config of each fusion that it schedules. A loop body
counts once per iteration (`known_trip_count`, or the number that the loop condition compares the counter with).
Collectives, Pallas kernels, sorts and scatters have no estimate; other modules estimate them or list them.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# Bytes per element by HLO's names of dtypes; a predicate takes one byte.
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
    """One instruction; `cycles` is None if the compiler has no estimate."""

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
        """Return the size of the result, summed over the elements of a tuple."""
        return shape_bytes(self.shape)

    @property
    def hbm_bytes(self) -> int:
        """Return the bytes of the result in HBM; the compiler keeps arrays that are used soon in VMEM."""
        return shape_bytes(self.shape, in_vmem=False)


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction and how often a step runs it."""

    instruction: Instruction
    times: int


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """The computations of a compiled program, by name."""

    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]

    def visits(self) -> Iterator[Visit]:
        """Yield the instructions that a step runs, including those in loops and calls; a fusion counts as a whole."""
        yield from self._visit(self.entry, 1)

    def _visit(self, computation: str, times: int) -> Iterator[Visit]:
        for instruction in self.computations[computation]:
            yield Visit(instruction, times)
            if instruction.opcode in ("while", "call", "async-start"):
                for name in instruction.called:
                    yield from self._visit(name, times * (self.trips(instruction) or 1))
            elif instruction.opcode == "conditional":
                # A step has one: the search for non-finite values, whose long branch runs only when there are any.
                yield from self._visit(min(instruction.called, key=self.cycles_of), times)

    def trips(self, instruction: Instruction) -> int | None:
        """Return the number of iterations of a loop (1 for other instructions), or None if it depends on data."""
        if instruction.trips is not None or instruction.opcode != "while":
            return instruction.trips or 1
        body = {item.name: item for item in self.computations[instruction.condition]}
        compare = next(iter(reversed(body.values())))
        limits = [body[name].constant for name in compare.operands if name in body and body[name].constant is not None]
        return limits[0] if compare.opcode == "compare" and "direction=LT" in compare.text and limits else None

    def named(self, name: str) -> Instruction | None:
        """Return the instruction of this name; names are unique in a program."""
        return next((item for body in self.computations.values() for item in body if item.name == name), None)

    def cycles(self) -> int:
        """Return the sum of the compiler's estimates for one run."""
        return self.cycles_of(self.entry)

    def cycles_of(self, computation: str) -> int:
        """Return the sum of the estimates for one run of a computation."""
        return sum((visit.instruction.cycles or 0) * visit.times for visit in self._visit(computation, 1))


def shape_bytes(shape: str, *, in_vmem: bool = True) -> int:
    """Return the bytes of an HLO shape, `(f32[2,3]{1,0}, bf16[4]{0:S(1)})`; with `in_vmem` False only those in HBM."""
    return sum(
        _ITEM_BYTES[dtype] * _elements(dimensions)
        for dtype, dimensions, layout in _ARRAY.findall(shape)
        if dtype in _ITEM_BYTES and (in_vmem or _IN_VMEM not in layout)
    )


def shape_elements(shape: str) -> int:
    """Return the elements of an HLO shape, of a tuple the sum."""
    return sum(_elements(dimensions) for dtype, dimensions, _ in _ARRAY.findall(shape) if dtype in _ITEM_BYTES)


def _elements(dimensions: str) -> int:
    return math.prod(int(dimension) for dimension in dimensions.split(",") if dimension)


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
    match = _OPCODE.search(rest)
    opcode = match.group(1) if match else ""
    shape = rest[: match.start()] if match else rest
    inner = rest[match.end() :] if match else ""
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
    """Return the index of the parenthesis that closes the list before `text`; layouts such as `T(8,128)` nest."""
    depth = 1
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return index
    return len(text)
