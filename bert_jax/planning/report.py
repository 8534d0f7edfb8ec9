"""Plan a whole run: every phase compiled and estimated, added up to days and chip-hours, as JSON and as a table."""

import math
from collections.abc import Callable
from typing import Any

import jax

from bert_jax.config import Config
from bert_jax.planning.chips import Topology
from bert_jax.planning.compiling import CompiledStep, DoesNotFit, compile_step, make_program
from bert_jax.planning.estimate import collectives_json, estimate_step, memory_json
from bert_jax.pretrain.program import Program
from bert_jax.training.schedule import Phase


def plan_run(
    config: Config,
    *,
    topology: Topology,
    report: Callable[[str], None],
    keep_hlo: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compile and estimate every phase of `config` on `topology`.

    Raises:
      UserError: if the config does not divide over the slice.
    """
    program = make_program(config, topology=topology)
    phases = []
    for index, phase in enumerate(program.phases):
        if phase.end == phase.start:
            continue
        report(f"compiling phase {index}: {_describe(phase, program)} for {topology.name}")
        try:
            compiled = compile_step(program, phase)
        except DoesNotFit as error:
            phases.append(_too_large(index, phase, program=program, topology=topology, needed=error.needed_bytes))
            continue
        if keep_hlo:
            keep_hlo(compiled.hlo)
        phases.append(phase_json(index, phase, compiled=compiled, program=program, topology=topology))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.state_shapes.params))
    fits = all(phase["hbm"]["fits"] for phase in phases)
    plan = {
        "topology": topology.name,
        "chips": topology.num_chips,
        "parameters": parameters,
        "mesh": dict(program.mesh.shape),
        "fits": fits,
        "phases": phases,
    }
    if fits:
        seconds = sum(phase["seconds"] for phase in phases)
        plan |= {"days": seconds / 86400, "chip_hours": seconds / 3600 * topology.num_chips}
    else:
        plan["advice"] = next(phase["advice"] for phase in phases if not phase["hbm"]["fits"])
    return plan


def phase_json(
    index: int, phase: Phase, *, compiled: CompiledStep, program: Program, topology: Topology
) -> dict[str, Any]:
    """Return the figures of one phase."""
    estimate = estimate_step(compiled, program=program, phase=phase, topology=topology)
    peak = topology.chip.peak_flops * topology.num_chips
    steps = phase.end - phase.start
    hbm = memory_json(compiled, topology=topology)
    rows = phase.batch_size / topology.num_chips
    return _heading(index, phase, program=program) | {
        "hbm": hbm,
        "estimated_cycles": estimate.cycles,
        "cycles_per_sequence": estimate.cycles / rows,
        "kernels": [{"name": k.name, "cycles": k.cycles, "times": k.times} for k in estimate.kernels],
        "unestimated": estimate.unestimated,
        "collectives": collectives_json(estimate),
        "compute_seconds": estimate.compute_seconds,
        "exposed_collective_seconds": estimate.exposed_seconds,
        "step_seconds": estimate.step_seconds,
        "sequences_per_second": phase.batch_size / estimate.step_seconds,
        "tokens_per_second": phase.batch_size * phase.max_seq_length / estimate.step_seconds,
        "mfu_before_collectives": estimate.model_flops / estimate.compute_seconds / peak,
        "mfu": estimate.model_flops / estimate.step_seconds / peak,
        "seconds": estimate.step_seconds * steps,
        **({} if hbm["fits"] else {"advice": advice(program.config, needed=hbm["total_bytes"], topology=topology)}),
    }


def advice(config: Config, *, needed: int | None, topology: Topology) -> str:
    """Return one line that says what to change so that a step fits; only what the slice and the config allow."""
    capacity = topology.chip.hbm_bytes / 2**30
    size = f"{needed / 2**30:.1f} GiB" if needed else "more"
    parts, chips = config.train.gradient_accumulation_steps, topology.num_chips
    levers = []
    if config.train.batch_size % (2 * parts * chips) == 0 and config.optimizer.clip_replicas == 1:
        levers.append(f"--config.train.gradient_accumulation_steps={2 * parts}")
    if config.model.remat != "full":
        levers.append(f"--config.model.remat={'dots' if config.model.remat == 'none' else 'full'}")
    shares = max(size for size in range(1, 9) if chips % size == 0)
    if config.mesh.fsdp == 1 and shares > 1 and config.optimizer.clip_replicas == 1:
        levers.append(f"--config.mesh.fsdp={shares}")
    return f"a chip needs {size} of {capacity:.0f} GiB: try {' or '.join([*levers, 'a smaller train.batch_size'])}"


def _heading(index: int, phase: Phase, *, program: Program) -> dict[str, Any]:
    return {
        "phase": index,
        "steps": phase.end - phase.start,
        "max_seq_length": phase.max_seq_length,
        "max_predictions_per_seq": phase.max_predictions_per_seq,
        "batch_size": phase.batch_size,
        "batch_size_per_chip": phase.batch_size / program.mesh.size,
        "gradient_accumulation_steps": program.config.train.gradient_accumulation_steps,
    }


def _too_large(index: int, phase: Phase, *, program: Program, topology: Topology, needed: int | None) -> dict[str, Any]:
    hbm = {"total_bytes": needed, "capacity_bytes": topology.chip.hbm_bytes, "fits": False}
    text = advice(program.config, needed=needed, topology=topology)
    return _heading(index, phase, program=program) | {"hbm": hbm, "advice": text}


def _describe(phase: Phase, program: Program) -> str:
    each = phase.batch_size / program.mesh.size
    layers = "scanned" if program.config.model.scan_layers else "unrolled"
    return f"{each:g} rows of {phase.max_seq_length} a chip, {program.config.model.num_hidden_layers} layers {layers}"


def as_table(plan: dict[str, Any]) -> str:
    """Return a plan for a reader on a terminal."""
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    lines = [f"{plan['topology']}: {plan['chips']} chips, mesh {mesh}, {plan['parameters']:,} parameters"]
    for phase in plan["phases"]:
        accumulated = phase["gradient_accumulation_steps"]
        lines.append(
            f"\nphase {phase['phase']}: {phase['steps']:,} steps of {phase['batch_size']:,} rows of "
            f"{phase['max_seq_length']} ({phase['batch_size_per_chip']:g} a chip"
            + (f" in {accumulated} micro-batches)" if accumulated > 1 else ")")
        )
        if "step_seconds" not in phase:
            lines.append(f"  does not fit: {phase['advice']}")
            continue
        hbm = phase["hbm"]
        lines.append(
            f"  memory a chip   {hbm['total_bytes'] / 2**30:.2f} of {hbm['capacity_bytes'] / 2**30:.0f} GiB "
            f"(state and rows {hbm['argument_bytes'] / 2**30:.2f}, temporary {hbm['temporary_bytes'] / 2**30:.2f})"
        )
        lines.append(
            f"  step            {phase['step_seconds'] * 1e3:.1f} ms: computing {phase['compute_seconds'] * 1e3:.1f} "
            f"({phase['cycles_per_sequence'] / 1e3:,.0f} K cycles a sequence), waiting for other chips "
            f"{phase['exposed_collective_seconds'] * 1e3:.1f}"
        )
        lines.append(
            f"  throughput      {phase['sequences_per_second']:,.0f} sequences/s, "
            f"{phase['tokens_per_second']:,.0f} tokens/s, MFU {phase['mfu']:.1%} "
            f"({phase['mfu_before_collectives']:.1%} before collectives)"
        )
        for item in phase["collectives"]:
            how = "overlapped" if item["overlapped"] else "waited for"
            lines.append(
                f"  {item['kind']:<15} {item['count']} over {item['chips']} chips, {item['bytes'] / 2**20:,.1f} MiB, "
                f"{item['seconds'] * 1e3:.2f} ms, {how}: {item['exposed_seconds'] * 1e3:.2f} ms exposed"
            )
        if phase["unestimated"]:
            counts = ", ".join(f"{count} x {kind}" for kind, count in phase["unestimated"].items())
            lines.append(f"  not estimated   {counts}")
        if "advice" in phase:
            lines.append(f"  does not fit: {phase['advice']}")
    if plan["fits"]:
        days = plan["days"]
        whole = f"{days:.2f} days" if days >= 1 else f"{math.ceil(days * 24 * 60)} minutes"
        lines.append(f"\nwhole schedule: {whole}, {plan['chip_hours']:,.0f} chip-hours")
    return "\n".join(lines)
