"""Find the project's own kernels in a compiled program, and count what each costs.

The compiler puts no estimate on a Pallas kernel, but it writes out the kernel's final schedule if asked to: one line a
cycle, `>` marks the depth of a loop. Cycles are the lines of each depth times the rounds of the loops around them, or
the time its arrays take from and to HBM (where they lie there), whichever is longer: a kernel fetches the next block
while it works.
"""

import dataclasses
import re
from pathlib import Path

from bert_jax.model.kernels import fused_attention, fused_residual_norm
from bert_jax.planning.chips import Chip
from bert_jax.planning.hlo import HloProgram, Instruction

_TARGET = "tpu_custom_call"
_BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+(?:L[HBE]|P[BF])?\s*:\s*(>*) ?\{", re.MULTILINE)
_TOKENS = re.compile(r"bf16\[(\d+),(\d+),(\d+)\]")  # rows, tokens, features; float32 has other loops


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Hold the calls of one kernel: cycles of one call (None if nothing tells), calls a step, their instructions."""

    name: str
    cycles: int | None
    times: int
    calls: tuple[str, ...]


def find_kernels(program: HloProgram, *, schedules: Path | None, chip: Chip) -> list[Kernel]:
    """Return the kernels of one step; calls of a name and shape are counted together.

    `schedules` is where the compiler wrote the schedules of this program.
    """
    found: dict[tuple[str, str], Kernel] = {}
    for visit in program.visits():
        item = visit.instruction
        if item.target != _TARGET:
            continue
        key = (re.sub(r"[.\d]*$", "", item.name), item.shape)
        known = found.get(key)
        cycles = known.cycles if known else _cycles(item, program=program, schedules=schedules, chip=chip)
        times, calls = (known.times, known.calls) if known else (0, ())
        found[key] = Kernel(name=key[0], cycles=cycles, times=times + visit.times, calls=(*calls, item.name))
    return list(found.values())


def _cycles(item: Instruction, *, program: HloProgram, schedules: Path | None, chip: Chip) -> int | None:
    files = sorted(schedules.glob(f"*-{item.name}-*final_bundles.txt")) if schedules else []
    files = [file for file in files if "schedule-analysis" not in file.name]
    tokens = _TOKENS.search(item.shape)
    if not files or not tokens:
        return None
    rows, length, width = map(int, tokens.groups())
    total, product = 0, 1
    depths = [len(marks) for marks in _BUNDLE.findall(files[-1].read_text(encoding="utf-8"))]
    for depth, count in enumerate(_loop_rounds(item.name, rows=rows, length=length, width=width), 1):
        product *= count
        total += product * depths.count(depth)
    operands = filter(None, map(program.named, set(item.operands)))
    moved = item.hbm_bytes + sum(operand.hbm_bytes for operand in operands)
    waiting = moved / chip.hbm_bandwidth * chip.clock
    return max(total // chip.cores, int(waiting))


def _loop_rounds(name: str, *, rows: int, length: int, width: int) -> list[int]:
    if name.startswith("residual_norm"):
        return fused_residual_norm.loop_rounds(rows=rows, length=length, width=width, item_bytes=2)
    steps, *inner = fused_attention.loop_rounds(name, length=length, heads=width // fused_attention.HEAD_SIZE)
    return [rows * steps, *inner]
