"""The plan of a whole run: every phase compiled and estimated, days and chip-hours, as JSON and as a table."""

from collections.abc import Callable
from typing import Any

import jax

from bert_jax.config import Config
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.parallel.axes import describe
from bert_jax.planning.collectives import LINKS
from bert_jax.planning.compiling import DoesNotFit, compile_step, make_program
from bert_jax.planning.estimate import (
    Estimate,
    RowContents,
    collectives_json,
    estimate_step,
    memory_json,
    row_contents,
)
from bert_jax.planning.scaling import Scaling, scale_down
from bert_jax.planning.topology import Topology
from bert_jax.planning.waiting import waiting_notes
from bert_jax.pretrain.open_values import EPOCHS_NEED_DATA, is_settled, preliminary
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.progress import clock, duration
from bert_jax.training.schedule import Phase


def plan_run(
    config: Config,
    *,
    topology: Topology,
    report: Callable[[str], None],
    keep_hlo: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return the plan of `config` on `topology`; slices above 256 chips are scaled (`planning/scaling.py`).

    Raises:
      UserError: if the config does not divide over the slice, or its data set lacks the length of a phase.
    """
    notes = [] if is_settled(config) else [EPOCHS_NEED_DATA.format(config.train.num_steps)]
    config = preliminary(config)
    scaling = scale_down(config, topology=topology)
    program = make_program(scaling.config, topology=scaling.part)
    phases = [
        _plan_phase(
            index,
            part,
            program=program,
            config=config,
            topology=topology,
            scaling=scaling,
            report=report,
            keep_hlo=keep_hlo,
        )
        for index, part in enumerate(program.phases)
        if part.end > part.start
    ]
    fits = all(phase["hbm"]["fits"] for phase in phases)
    plan = {
        "topology": topology.name,
        "chips": topology.num_chips,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.state_shapes.params)),
        "compiled_for": scaling.part.name,
        "mesh": scaling.mesh_shape(dict(program.mesh.shape)),
        "compiler_options": dict(program.compiler_options.values),
        "fits": fits,
        "notes": notes
        + _notes(config, topology=topology, part=scaling.part)
        + _option_notes(program, phases)
        + waiting_notes(phases),
        "phases": phases,
    }
    if not fits:
        return plan | {"advice": next(phase["advice"] for phase in phases if not phase["hbm"]["fits"])}
    seconds = sum(phase["seconds"] for phase in phases)
    return plan | {"days": seconds / 86400, "chip_hours": seconds / 3600 * topology.num_chips}


def _plan_phase(
    index: int,
    part: Phase,
    *,
    program: PretrainingProgram,
    config: Config,
    topology: Topology,
    scaling: Scaling,
    report: Callable[[str], None],
    keep_hlo: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Compile a phase and return its plan; `part` has the batch of the slice that is compiled for."""
    report(f"compiling phase {index}: {_describe(part, program, topology=scaling.part)} for {scaling.part.name}")
    phase, contents = scaling.phase(part), row_contents(config, max_seq_length=part.max_seq_length)
    try:
        with clock(f"compiling phase {index}; many unrolled layers take minutes", report=report):
            compiled = compile_step(program, part)
    except DoesNotFit as error:
        return _too_large(index, phase, config=config, topology=topology, needed=error.needed_bytes)
    if keep_hlo:
        keep_hlo(compiled.hlo)
    estimate = estimate_step(
        compiled, program=program, phase=phase, topology=topology, scaling=scaling, contents=contents
    )
    return phase_json(
        index,
        phase,
        estimate=estimate,
        hbm=memory_json(compiled, topology=topology),
        config=config,
        topology=topology,
        contents=contents,
    )


def phase_json(
    index: int,
    phase: Phase,
    *,
    estimate: Estimate,
    hbm: dict[str, Any],
    config: Config,
    topology: Topology,
    contents: RowContents,
) -> dict[str, Any]:
    """Return the plan of one phase; `phase` has the batch size of the whole `topology`."""
    peak = topology.chip.peak_flops * topology.num_chips
    steps = phase.end - phase.start
    rows = phase.batch_size / topology.num_devices  # cycles are those of a device
    sequences_per_second = phase.batch_size / estimate.step_seconds
    tokens_per_second = sequences_per_second * phase.max_seq_length
    known_packing = config.data.pack and contents.filled_share is not None
    return _heading(index, phase, topology=topology, parts=config.train.gradient_accumulation_steps) | {
        "hbm": hbm,
        "estimated_cycles": estimate.cycles,
        "uncounted": {"fusions": estimate.uncounted.fusions, "cycles": estimate.uncounted.total_cycles},
        "cycles_per_sequence": estimate.cycles / rows,
        "gradient_cycles_per_sequence": estimate.gradient_cycles / rows,
        "kernels": [{"name": k.name, "cycles": k.cycles, "times": k.times} for k in estimate.kernels],
        "unestimated": estimate.unestimated,
        "collectives": collectives_json(estimate),
        "compute_seconds": estimate.compute_seconds,
        "exposed_collective_seconds": estimate.exposed_seconds,
        "step_seconds": estimate.step_seconds,
        "sequences_per_second": sequences_per_second,
        "tokens_per_second": tokens_per_second,
        "real_tokens_per_second": None if contents.filled_share is None else contents.filled_share * tokens_per_second,
        **({"instances_per_second": contents.instances * sequences_per_second} if known_packing else {}),
        "mfu_before_collectives": estimate.model_flops / estimate.compute_seconds / peak,
        "mfu": estimate.model_flops / estimate.step_seconds / peak,
        "seconds": estimate.step_seconds * steps,
        **({} if hbm["fits"] else {"advice": advice(config, needed=hbm["total_bytes"], topology=topology)}),
    }


def advice(config: Config, *, needed: int | None, topology: Topology) -> str:
    """Return a line with the settings that reduce memory; only those that the slice and the config allow."""
    capacity = topology.chip.device.hbm_bytes / 2**30
    size = f"{needed / 2**30:.1f} GiB" if needed else "more"
    parts, devices = config.train.gradient_accumulation_steps, topology.num_devices
    options = []
    if config.train.batch_size % (2 * parts * devices) == 0 and config.optimizer.clip_replicas == 1:
        options.append(f"--config.train.gradient_accumulation_steps={2 * parts}")
    if config.model.remat != "full":
        options.append(f"--config.model.remat={'dots' if config.model.remat == 'none' else 'full'}")
    fsdp = max(size for size in range(1, 9) if topology.slice_devices % size == 0)
    if config.mesh.fsdp == 1 and fsdp > 1 and config.optimizer.clip_replicas == 1:
        options.append(f"--config.mesh.fsdp={fsdp}")
    remedies = " or ".join([*options, "a smaller --config.train.batch_size"])
    return f"a step needs {size} of {capacity:.0f} GiB per chip: try {remedies}"


def _heading(index: int, phase: Phase, *, topology: Topology, parts: int) -> dict[str, Any]:
    return {
        "phase": index,
        "steps": phase.end - phase.start,
        "max_seq_length": phase.max_seq_length,
        "max_predictions_per_seq": phase.max_predictions_per_seq,
        "batch_size": phase.batch_size,
        "batch_size_per_chip": phase.batch_size / topology.num_chips,
        "gradient_accumulation_steps": parts,
    }


def _too_large(index: int, phase: Phase, *, config: Config, topology: Topology, needed: int | None) -> dict[str, Any]:
    hbm = {"total_bytes": needed, "capacity_bytes": topology.chip.device.hbm_bytes, "fits": False}
    text = advice(config, needed=needed, topology=topology)
    parts = config.train.gradient_accumulation_steps
    return _heading(index, phase, topology=topology, parts=parts) | {"hbm": hbm, "advice": text}


def _notes(config: Config, *, topology: Topology, part: Topology) -> list[str]:
    """Return the caveats of the plan."""
    model = config.model
    notes = kernel_notices(dtype=model.dtype, implementation=model.attention_implementation, backend="tpu")
    if part != topology:
        notes.append(
            f"compiled for {part.name} with the same number of sequences per chip; collectives are scaled to "
            f"{topology.name}, the memory of the state is not (upper bound)"
        )
    if config.data.pack and not config.data.directory:
        notes.append(
            "sequences are packed: MFU counts attention between all positions of a sequence, an upper bound; set "
            "--config.data.directory=DIR to count it from the data set"
        )
    return notes


def _option_notes(program: PretrainingProgram, phases: list[dict[str, Any]]) -> list[str]:
    """Return what the compiler options make uncertain, and those that this compiler refuses."""
    notes = program.compiler_options.lines()[1 if program.compiler_options.values else 0 :]
    most_fused = max((item["fused"] for phase in phases for item in phase.get("collectives", ())), default=0)
    if most_fused and program.compiler_options.values:
        notes.append(
            f"up to {most_fused} collectives of a class are fused with the computation that hides them; what that "
            "costs the computation is in no estimate: compare the plan with --config.mesh.compiler_options=none"
        )
    num_uncounted = sum(phase.get("uncounted", {}).get("fusions", 0) for phase in phases)
    if num_uncounted:
        notes.append(
            f"{num_uncounted} fusions with matmuls have no estimate: their products are counted at the chip's peak"
        )
    return notes


def _describe(phase: Phase, program: PretrainingProgram, *, topology: Topology) -> str:
    per_chip = phase.batch_size / topology.num_chips
    layers = "scanned" if program.config.model.scan_layers else "unrolled"
    return (
        f"{per_chip:g} sequences of {phase.max_seq_length} tokens per chip, {program.config.model.num_hidden_layers} "
        f"layers {layers}"
    )


def _contents(phase: dict[str, Any]) -> str:
    real, instances = phase["real_tokens_per_second"], phase.get("instances_per_second")
    parts = [f"{real:,.0f} without padding"] if real is not None else []
    parts += [f"{instances:,.0f} instances/s"] if instances is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def as_table(plan: dict[str, Any]) -> str:
    """Return a plan as text for a terminal: what a user decides by comes last, where a long text ends on a screen."""
    lines = [
        f"{plan['topology']}: {plan['chips']} chips, mesh {describe(plan['mesh'])}, {plan['parameters']:,} parameters"
    ]
    if plan["compiler_options"]:
        lines.append(f"compiler options: {', '.join(plan['compiler_options'])}")
    for phase in plan["phases"]:
        parts = phase["gradient_accumulation_steps"]
        lines.append(
            f"\nphase {phase['phase']}: {phase['steps']:,} steps of {phase['batch_size']:,} sequences of "
            f"{phase['max_seq_length']} tokens ({phase['batch_size_per_chip']:g} per chip"
            + (f" in {parts} micro-batches)" if parts > 1 else ")")
        )
        if "step_seconds" not in phase:
            lines.append("  does not fit")
            continue
        hbm = phase["hbm"]
        lines.append(
            f"  memory per chip {hbm['total_bytes'] / 2**30:.2f} of {hbm['capacity_bytes'] / 2**30:.0f} GiB "
            f"(its shard of state and batch {hbm['argument_bytes'] / 2**30:.2f}, temporary "
            f"{hbm['temporary_bytes'] / 2**30:.2f})"
        )
        lines.append(
            f"  step            {phase['step_seconds'] * 1e3:.1f} ms: computation "
            f"{phase['compute_seconds'] * 1e3:.1f}, waiting for communication "
            f"{phase['exposed_collective_seconds'] * 1e3:.1f}"
        )
        lines.append(
            f"  throughput      {phase['sequences_per_second']:,.0f} sequences/s, "
            f"{phase['tokens_per_second']:,.0f} tokens/s{_contents(phase)}, MFU {phase['mfu']:.1%} "
            f"({phase['mfu_before_collectives']:.1%} before collectives)"
        )
        for item in filter(_is_visible, phase["collectives"]):
            how = "overlapped" if item["overlapped"] else "synchronous"
            how += f" ({item['fused']} fused with computation)" if item["fused"] else ""
            where = "chips" if item["network"] == LINKS else "chips across slices"
            lines.append(
                f"  {item['kind']:<15} {item['count']} x {item['chips']} {where}, {item['bytes'] / 2**20:,.1f} MiB, "
                f"{item['seconds'] * 1e3:.2f} ms, {how}: {item['exposed_seconds'] * 1e3:.2f} ms exposed"
                + (f" (limit: {item['limited_by']})" if item["limited_by"] else "")
                + f", issued {item['first_issued_seconds'] * 1e3:.1f} to {item['last_issued_seconds'] * 1e3:.1f} ms"
            )
        if phase["unestimated"]:
            counts = ", ".join(f"{count} x {kind}" for kind, count in phase["unestimated"].items())
            lines.append(f"  not estimated   {counts}")
    return "\n".join(
        [*lines, *([""] if plan["notes"] else []), *(f"note: {note}" for note in plan["notes"]), "", *_summary(plan)]
    )


def _is_visible(item: dict[str, Any]) -> bool:
    """Return whether a collective is more than zero in the units of the table."""
    return item["bytes"] >= 0.05 * 2**20 or max(item["seconds"], item["exposed_seconds"]) >= 0.005e-3


def _summary(plan: dict[str, Any]) -> list[str]:
    """Return a line per phase with its step, MFU and memory, and the time and chip-hours of the whole schedule."""
    lines = []
    for phase in plan["phases"]:
        hbm = phase["hbm"]
        if "advice" in phase:
            lines.append(f"phase {phase['phase']} does not fit: {phase['advice']}")
        else:
            lines.append(
                f"phase {phase['phase']} fits: {hbm['total_bytes'] / 2**30:.2f} of {hbm['capacity_bytes'] / 2**30:.0f} "
                f"GiB, {phase['step_seconds'] * 1e3:.1f} ms per step, MFU {phase['mfu']:.1%}, "
                f"{duration(phase['seconds'])} for {phase['steps']:,} steps"
            )
    if plan["fits"]:
        lines.append(
            f"whole schedule: {duration(plan['days'] * 86400)} ({plan['days']:,.2f} days), {plan['chip_hours']:,.0f} "
            "chip-hours"
        )
    return lines
