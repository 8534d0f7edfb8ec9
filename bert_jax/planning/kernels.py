"""Find the project's own kernels in a compiled program, and count what each costs.

The compiler puts no estimate on a Pallas kernel, but it writes out the kernel's final schedule if asked to: one line a
cycle, `>` marks the depth of a loop. Cycles are the lines of each depth times the rounds of the loops around them, or
the time its arrays take from and to HBM (where they lie there), whichever is longer: a kernel fetches the next block
while it works.
"""

import dataclasses
import re
from pathlib import Path

from bert_jax.chips import Chip
from bert_jax.model.kernels import fused_attention, fused_residual_norm
from bert_jax.planning.hlo import HloProgram, Instruction

_TARGET = "tpu_custom_call"
_BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+(?:L[HBE]|P[BF])?\s*:\s*(>*) ?\{", re.MULTILINE)
_TOKENS = re.compile(r"(bf16|f32)\[(\d+),(\d+),(\d+)\]")  # rows, tokens, features


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Hold the calls of one kernel: cycles of one call (None if nothing tells), calls a step, their instructions."""

    name: str
    cycles: int | None
    times: int
    calls: tuple[str, ...]


def find_kernels(program: HloProgram, *, schedules: Path | None, chip: Chip) -> list[Kernel]:
    """Return the kernels of one step; calls that cost the same are counted together.

    `schedules` is where the compiler wrote the schedules of this program: of equal calls, that of one.
    """
    found: dict[tuple[str, str, int | None], Kernel] = {}
    scheduled: dict[tuple[str, str], int | None] = {}
    for visit in program.visits():
        item = visit.instruction
        if item.target != _TARGET:
            continue
        name = re.sub(r"[.\d]*$", "", item.name)
        if (name, item.shape) not in scheduled:
            scheduled[name, item.shape] = _scheduled_cycles(item, schedules=schedules, chip=chip)
        cycles = scheduled[name, item.shape]
        if cycles is not None:
            cycles = max(cycles, _waiting_cycles(item, program=program, chip=chip))
        known = found.get((name, item.shape, cycles))
        times, calls = (known.times, known.calls) if known else (0, ())
        found[name, item.shape, cycles] = Kernel(name, cycles, times=times + visit.times, calls=(*calls, item.name))
    return list(found.values())


def _waiting_cycles(item: Instruction, *, program: HloProgram, chip: Chip) -> int:
    operands = filter(None, map(program.named, set(item.operands)))
    moved = item.hbm_bytes + sum(operand.hbm_bytes for operand in operands)
    return int(moved / chip.hbm_bandwidth * chip.clock)


def _scheduled_cycles(item: Instruction, *, schedules: Path | None, chip: Chip) -> int | None:
    files = sorted(schedules.glob(f"*-{item.name}-*final_bundles.txt")) if schedules else []
    files = [file for file in files if "schedule-analysis" not in file.name]
    tokens = _TOKENS.search(item.shape)
    if not files or not tokens:
        return None
    rows, length, width = map(int, tokens.groups()[1:])
    rounds = _loop_rounds(item.name, rows=rows, length=length, width=width, dtype=tokens.group(1), cores=chip.cores)
    if rounds is None:
        return None
    depths = [len(marks) for marks in _BUNDLE.findall(files[-1].read_text(encoding="utf-8"))]
    total, product = depths.count(0), 1
    for depth, count in enumerate((count for count in rounds if count > 1), 1):
        product *= count
        total += product * depths.count(depth)
    return total


def _loop_rounds(name: str, *, rows: int, length: int, width: int, dtype: str, cores: int) -> list[int] | None:
    """Return the rounds of a kernel's loops on the core that has the most to do; one of one round is no loop."""
    item_bytes = 2 if dtype == "bf16" else 4
    if "residual_norm" in name:
        steps, *inner = fused_residual_norm.loop_rounds(rows=rows, length=length, width=width, item_bytes=item_bytes)
        return [-(-steps // cores), *inner]
    if "attention" in name:
        heads = width // fused_attention.HEAD_SIZE
        steps = fused_attention.grid_steps(name, length=length, heads=heads, item_bytes=item_bytes)
        return [-(-rows // cores) * steps]
    return None
