"""The Pallas kernels of a compiled program and their cycles.

The compiler estimates no cycles for a Pallas kernel, but it can write the kernel's final schedule: one line per cycle,
with `>` for the depth of loops. The cycles of a kernel are the larger of

* the lines at each depth times the iterations of the loops around them, and
* the time to move its arrays from and to HBM: a kernel fetches the next block while it computes.
"""

import dataclasses
import math
import re
from pathlib import Path

from bert_jax.chips import Chip
from bert_jax.model.kernels import (
    fused_attention,
    fused_residual_norm,
    fused_rotation,
    head_pairs,
    long_attention,
    window_attention,
)
from bert_jax.planning.hlo import HloProgram, Instruction

_TARGET = "tpu_custom_call"
_BUNDLE = re.compile(r"^\s*0x[0-9a-f]+\s+(?:L[HBE]|P[BF])?\s*:\s*(>*) ?\{", re.MULTILINE)
_TOKENS = re.compile(r"(bf16|f32)\[(\d+),(\d+),(\d+)\]")  # sequences, tokens, features
_SIZES = re.compile(r"(?:bf16|f32)\[([\d,]+)\]")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The calls of one kernel: cycles per call (None if unknown), calls per step, and the names of the instructions."""

    name: str
    cycles: int | None
    times: int
    calls: tuple[str, ...]


def find_kernels(program: HloProgram, *, schedules: Path | None, chip: Chip) -> list[Kernel]:
    """Return the kernels of one step; calls with the same cost are counted together.

    `schedules` is the folder with the compiler's schedules of this program: one schedule for equal calls.
    """
    kernels: dict[tuple[str, str, int | None], Kernel] = {}
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
            cycles = max(cycles, _memory_cycles(item, program=program, chip=chip))
        known = kernels.get((name, item.shape, cycles))
        times, calls = (known.times, known.calls) if known else (0, ())
        kernels[name, item.shape, cycles] = Kernel(name, cycles, times=times + visit.times, calls=(*calls, item.name))
    return list(kernels.values())


def _memory_cycles(item: Instruction, *, program: HloProgram, chip: Chip) -> int:
    operands = filter(None, map(program.named, set(item.operands)))
    moved = item.hbm_bytes + sum(operand.hbm_bytes for operand in operands)
    return int(moved / chip.hbm_bandwidth * chip.clock)


def _scheduled_cycles(item: Instruction, *, schedules: Path | None, chip: Chip) -> int | None:
    # The compiler writes one schedule for equal calls, and calls on other layouts may be equal.
    names = (item.name, re.sub(r"[.\d]*$", "", item.name) + "[.-]*")
    files = next(filter(None, (_schedules(name, folder=schedules) for name in names)), [])
    rounds = None
    if item.name.startswith("splash_"):
        rounds = _splash_rounds(item.shape, cores=chip.cores)
    elif tokens := _TOKENS.search(item.shape):
        rows, length, width = map(int, tokens.groups()[1:])
        rounds = _loop_rounds(item.name, rows=rows, length=length, width=width, dtype=tokens.group(1), cores=chip.cores)
    if not files or rounds is None:
        return None
    depths = [len(marks) for marks in _BUNDLE.findall(files[-1].read_text(encoding="utf-8"))]
    total, product = depths.count(0), 1
    for depth, count in enumerate((count for count in rounds if count > 1), 1):
        product *= count
        total += product * depths.count(depth)
    return total


def _schedules(name: str, *, folder: Path | None) -> list[Path]:
    files = sorted(folder.glob(f"*-{name}-*final_bundles.txt")) if folder else []
    return [file for file in files if "schedule-analysis" not in file.name]


def _splash_rounds(shape: str, *, cores: int) -> list[int]:
    """Return the grid steps of a pass of jax's splash attention: a pair of blocks of one head of one sequence each."""
    # The last result of each pass is `lse` or a gradient: [sequences, heads, T], [sequences, heads, T, K].
    sizes = [int(size) for size in _SIZES.findall(shape)[-1].split(",")]
    length = max(sizes)
    pairs = long_attention.pairs_of_blocks(length)
    return [-(-math.prod(sizes[: sizes.index(length)]) // cores) * pairs]


def _loop_rounds(name: str, *, rows: int, length: int, width: int, dtype: str, cores: int) -> list[int] | None:
    """Return the iterations of a kernel's nested loops, on the core with the most work; 1 where there is no loop."""
    item_bytes = 2 if dtype == "bf16" else 4
    if "residual_norm" in name:
        steps, *inner = fused_residual_norm.loop_rounds(rows=rows, length=length, width=width, item_bytes=item_bytes)
        return [-(-steps // cores), *inner]
    if name.startswith("rotation"):
        return [-(-rows // cores) * fused_rotation.grid_steps(length)]
    heads = width // head_pairs.HEAD_SIZE
    if "window_attention" in name:
        return [-(-rows // cores) * window_attention.grid_steps(length=length, heads=heads)]
    if "attention" in name:
        steps, *inner = fused_attention.loop_rounds(name, length=length, heads=heads, item_bytes=item_bytes)
        return [-(-rows // cores) * steps, *inner]
    return None
