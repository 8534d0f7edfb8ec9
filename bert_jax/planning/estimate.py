"""Estimates from a compiled step: memory, cycles, seconds, collectives, model FLOPs."""

import dataclasses
from collections import defaultdict
from typing import Any

from bert_jax.config import Config, instances_per_row
from bert_jax.data.dataset_info import load_dataset_info
from bert_jax.model.architectures import architecture_of
from bert_jax.planning.collectives import LIMITS, Collective, collective_of, find_collectives
from bert_jax.planning.compiling import CompiledStep
from bert_jax.planning.hlo import HloProgram, parse_hlo
from bert_jax.planning.kernels import Kernel, find_kernels
from bert_jax.planning.scaling import Scaling
from bert_jax.planning.topology import Topology
from bert_jax.planning.uncounted import Uncounted, uncounted_matmuls
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.training.schedule import Phase

# Operations that take time but for which the compiler estimates no cycles.
_UNESTIMATED = ("sort", "gather", "scatter", "rng-bit-generator", "custom-call", "convolution", "dot", "reduce-window")
_DIFFERENTIATED = "jvp("  # jax's name for differentiated code, forward and backward pass
_NO_WORK = ("ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding", "SPMDFullToShardShape", "AllocateBuffer")


@dataclasses.dataclass(frozen=True)
class RowContents:
    """The average sequence: its instances, and the fractions of its positions and of their pairs that are used."""

    instances: float
    filled_share: float | None  # None: unknown
    attended_share: float


def row_contents(config: Config, *, max_seq_length: int) -> RowContents:
    """Return the average sequence of `config.data.directory`; without a directory, the upper bound.

    Raises:
      UserError: if the directory has no data set of this length.
    """
    if not config.data.directory:
        return RowContents(instances_per_row(config.data, max_seq_length=max_seq_length), None, 1.0)
    info = load_dataset_info(config.data.directory, max_seq_length=max_seq_length)
    return RowContents(info.mean_instances, 1 - info.statistics["padding_share"], info.attended_share)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of a step: seconds per step, bytes per chip; `cycles` include `uncounted`, which the compiler omits."""

    cycles: int
    uncounted: Uncounted
    gradient_cycles: int  # of forward and backward pass, which do not depend on the number of chips
    kernels: list[Kernel]
    compute_seconds: float
    exposed_seconds: float
    collectives: list[Collective]
    unestimated: dict[str, int]
    model_flops: float

    @property
    def step_seconds(self) -> float:
        """Return the time of a step: computation plus communication that is not overlapped."""
        return self.compute_seconds + self.exposed_seconds


def estimate_step(
    compiled: CompiledStep,
    *,
    program: PretrainingProgram,
    phase: Phase,
    topology: Topology,
    scaling: Scaling,
    contents: RowContents,
) -> Estimate:
    """Return the estimate of one step of `phase` on `topology`; `contents` describes its sequences.

    `compiled` is the step on the part of the topology that `scaling` names.
    """
    hlo = parse_hlo(compiled.hlo)
    kernels = find_kernels(hlo, schedules=compiled.schedules, chip=topology.chip.device)
    uncounted = uncounted_matmuls(hlo, chip=topology.chip.device)
    cycles = hlo.cycles() + sum((kernel.cycles or 0) * kernel.times for kernel in kernels) + uncounted.total_cycles
    own_cycles = uncounted.cycles | {call: kernel.cycles or 0 for kernel in kernels for call in kernel.calls}
    collectives = find_collectives(
        hlo,
        topology=topology,
        own_cycles=own_cycles,
        num_devices=scaling.part.slice_devices,
        spans=scaling.group_size,
    )
    model = program.model(phase)
    flops = architecture_of(model).train_flops_per_row(
        model,
        max_seq_length=phase.max_seq_length,
        max_predictions=program.max_predictions(phase),
        instances=contents.instances,
        attended_share=contents.attended_share,
    )
    passes = (visit for visit in hlo.visits() if _DIFFERENTIATED in visit.instruction.op_name)
    return Estimate(
        cycles=cycles,
        uncounted=uncounted,
        gradient_cycles=sum(
            (visit.instruction.cycles or own_cycles.get(visit.instruction.name, 0)) * visit.times for visit in passes
        ),
        kernels=kernels,
        compute_seconds=cycles / topology.chip.clock,
        exposed_seconds=sum(item.exposed_seconds * item.times for item in collectives),
        collectives=collectives,
        unestimated=find_unestimated(hlo) | {k.name: k.times for k in kernels if k.cycles is None},
        model_flops=flops * phase.batch_size,
    )


def find_unestimated(program: HloProgram) -> dict[str, int]:
    """Return how often a step runs each kind of operation without an estimate."""
    counts: dict[str, int] = defaultdict(int)
    for visit in program.visits():
        item = visit.instruction
        kind = item.opcode
        if kind == "while" and program.trips(item) is None:
            counts["loop of unknown length"] += visit.times
        if item.opcode == "fusion" and not item.cycles:
            inside = {inner.opcode for name in item.called for inner in program.computations.get(name, ())}
            kind = next((name for name in ("scatter", "gather", "sort") if name in inside or name in item.name), "")
        elif item.cycles or item.target in (*_NO_WORK, "tpu_custom_call") or collective_of(program, item):
            continue
        if kind in _UNESTIMATED:
            counts[kind] += visit.times
    return dict(counts)


def memory_json(compiled: CompiledStep, *, topology: Topology) -> dict[str, Any]:
    """Return the memory in bytes per device, which is a chip except on TPU7x."""
    return {
        "argument_bytes": compiled.argument_bytes,
        "temporary_bytes": compiled.temporary_bytes,
        "output_bytes": compiled.output_bytes,
        "code_bytes": compiled.code_bytes,
        "total_bytes": compiled.total_bytes,
        "capacity_bytes": topology.chip.device.hbm_bytes,
        "fits": compiled.total_bytes <= topology.chip.device.hbm_bytes,
    }


def collectives_json(estimate: Estimate) -> list[dict[str, Any]]:
    """Return the collectives, summed by kind, network, group size and whether they are overlapped.

    Each class has the time in the step when the first and the last are issued, and what limits the largest part of
    its exposed time.
    """
    limits: dict[tuple[str, str, int, bool], dict[str, float]] = defaultdict(lambda: dict.fromkeys(LIMITS, 0.0))
    groups: dict[tuple[str, str, int, bool], dict[str, Any]] = {}
    for item in estimate.collectives:
        key = (item.kind, item.network, item.group_size, item.overlapped)
        total = groups.setdefault(
            key,
            {
                "kind": item.kind,
                "network": item.network,
                "chips": item.group_size,
                "overlapped": item.overlapped,
                "count": 0,
                "fused": 0,
                "bytes": 0,
                "seconds": 0.0,
                "hidden_seconds": 0.0,
                "exposed_seconds": 0.0,
                "first_issued_seconds": item.issued_seconds,
                "last_issued_seconds": item.issued_seconds,
                "limited_by": "",
            },
        )
        if item.limit:
            limits[key][item.limit] += item.exposed_seconds * item.times
            total["limited_by"] = max(limits[key], key=lambda limit: limits[key][limit])
        total["first_issued_seconds"] = min(total["first_issued_seconds"], item.issued_seconds)
        total["last_issued_seconds"] = max(total["last_issued_seconds"], item.issued_seconds)
        total["fused"] += item.times * item.fused
        total["hidden_seconds"] += max(0.0, item.seconds - item.exposed_seconds) * item.times
        total["count"] += item.times
        total["bytes"] += item.bytes * item.times
        total["seconds"] += item.seconds * item.times
        total["exposed_seconds"] += item.exposed_seconds * item.times
    return sorted(groups.values(), key=lambda total: -total["bytes"])
