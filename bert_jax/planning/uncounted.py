"""Matmuls that the compiler's estimates leave out: those of fusions without `estimated_cycles`.

Under options that fuse collectives into matmuls, such a fusion may have no estimate, and its cycles would seem to have
been saved. They are counted by the products of the fusion at the chip's peak, which is the least that they can take.
"""

import dataclasses
import math
from collections.abc import Iterator

from bert_jax.chips import Chip
from bert_jax.planning.hlo import HloProgram, Instruction, shape_elements

_MATMULS = ("convolution", "dot")


@dataclasses.dataclass(frozen=True)
class Uncounted:
    """Fusions of one step without an estimate: how many run, and the cycles of one run by instruction name."""

    fusions: int
    total_cycles: int
    cycles: dict[str, int]


def uncounted_matmuls(program: HloProgram, *, chip: Chip) -> Uncounted:
    """Return the fusions of a step that hold matmuls and have no estimate, with the cycles that their products take."""
    cycles: dict[str, int] = {}
    fusions = total = 0
    for visit in program.visits():
        item = visit.instruction
        if item.opcode != "fusion" or item.cycles:
            continue
        products = sum(_multiplications(program, name) for name in item.called)
        if products:
            cycles[item.name] = round(2 * products / chip.flops_per_cycle)
            fusions += visit.times
            total += cycles[item.name] * visit.times
    return Uncounted(fusions, total, cycles)


def _multiplications(program: HloProgram, computation: str) -> int:
    """Return M x K x N summed over the matmuls of a computation: the root of the sizes of operands and result."""
    body = {item.name: item for item in program.computations.get(computation, ())}
    total = 0
    for item in body.values():
        if item.opcode in _MATMULS:
            sizes = [shape_elements(part.shape) for part in (*_operands(item, body), item)]
            total += math.isqrt(math.prod(sizes)) if len(sizes) == 3 else 0
        total += sum(_multiplications(program, name) for name in item.called if item.opcode == "fusion")
    return total


def _operands(item: Instruction, body: dict[str, Instruction]) -> Iterator[Instruction]:
    return (body[name] for name in item.operands if name in body)
