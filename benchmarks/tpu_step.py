"""Compile our training step and HuggingFace Flax's for TPUs, without a TPU, and compare the compiler's estimates.

    python benchmarks/tpu_step.py --topology=v5e:4x4 --max_seq_length=128 --batch_size_per_chip=32 --layers=24

* Both sides have the same slice, sequences per chip, length, widths, depth and vocabulary, bfloat16 computation,
  dropout 0.1 everywhere, and AdamW. GELU is each side's default (ours tanh, HuggingFace's erf).
* One parser, one table of bandwidths and one count of model FLOPs (masked-LM head only at the masked positions) serve
  both sides.
* Ours is the step that `plan` compiles, with masking and clipping. HuggingFace gets masked ids for free.
  `huggingface_flax.py` describes what its users run.
* All results are estimates. Operations without an estimate by the compiler are listed in "unestimated".

Both sides run in one environment. It is not the development environment, because transformers 5 has no Flax models:

    python3.11 -m venv peer && peer/bin/pip install -e . jax==0.10.2 flax==0.12.8 libtpu==0.0.52 transformers==4.57.6

Prints one JSON line per side to stdout as soon as it is measured, and a table to stderr. Compiling 24 unrolled layers
takes minutes.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from bert_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    PhaseConfig,
    TrainConfig,
    instances_per_row,
    model_preset,
    validate,
)
from bert_jax.planning import compiling
from bert_jax.planning.estimate import collectives_json, estimate_step, memory_json, row_contents
from bert_jax.planning.scaling import Scaling
from bert_jax.planning.topology import Topology, parse_topology
from bert_jax.pretrain.program import PretrainingProgram

TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU slice.")
MODEL = flags.DEFINE_string("model", "large", "Model preset: widths and vocabulary.")
LAYERS = flags.DEFINE_integer("layers", 24, "Layers.")
LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens per sequence.")
BATCH = flags.DEFINE_integer("batch_size_per_chip", 32, "Sequences per chip (and per micro-batch of ours).")
PEER_BATCH = flags.DEFINE_integer(
    "huggingface_batch_size_per_chip", 0, "HuggingFace's sequences per chip, if ours do not fit; 0: as ours."
)
SIDES = flags.DEFINE_list("side", ["ours", "huggingface"], "Sides to compile.")
SCAN = flags.DEFINE_bool("scan", False, "Ours with scanned layers.")
PACK = flags.DEFINE_bool("pack", False, "Ours with sequence packing; K cycles are per packed sequence.")
REMAT = flags.DEFINE_string("remat", "none", "model.remat of ours.")
PEER_REMAT = flags.DEFINE_bool("huggingface_remat", False, "HuggingFace's gradient_checkpointing.")
ACCUMULATION = flags.DEFINE_integer("gradient_accumulation_steps", 1, "Micro-batches per step of ours.")
PEER_ACT = flags.DEFINE_string("huggingface_hidden_act", "gelu", "gelu: erf, its default; gelu_new: tanh, like ours.")
PRNG = flags.DEFINE_string("huggingface_prng", "threefry2x32", "HuggingFace's random numbers; JAX's default.")
OPTIONS = flags.DEFINE_string("compiler_options", "auto", "config.mesh.compiler_options of both sides.")
FSDP = flags.DEFINE_bool("fsdp", False, "Ours on a mesh with the axis fsdp instead of data.")
HLO = flags.DEFINE_string("hlo", "", "Write the compiled programs to HLO.ours and HLO.huggingface.")


def make_program(topology: Topology, *, batch_size_per_chip: int, accumulation: int, pack: bool) -> PretrainingProgram:
    """Return our program. HuggingFace's step uses its devices and its count of model FLOPs."""
    batch_size = batch_size_per_chip * accumulation * topology.num_chips
    model = dataclasses.replace(
        model_preset(MODEL.value), num_hidden_layers=LAYERS.value, scan_layers=SCAN.value, remat=REMAT.value
    )
    train = TrainConfig(
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        phases=(PhaseConfig(max_seq_length=LENGTH.value),),
    )
    mesh = MeshConfig(data=1, fsdp=-1) if FSDP.value else MeshConfig()
    mesh = dataclasses.replace(mesh, compiler_options=OPTIONS.value)
    data = DataConfig(pack=pack, objective="mlm+nsp" if model.architecture == "bert" else "mlm")
    config = validate(Config(model=model, mesh=mesh, train=train, data=data))
    return compiling.make_program(config, topology=topology)


def measure(side: str, *, topology: Topology) -> dict[str, Any]:
    """Compile one side and return its estimates. Cycles are those of one chip."""
    peer = side == "huggingface"
    rows = BATCH.value if not peer else PEER_BATCH.value or BATCH.value
    accumulation = 1 if peer else ACCUMULATION.value
    program = make_program(topology, batch_size_per_chip=rows, accumulation=accumulation, pack=PACK.value and not peer)
    phase = program.phases[0]
    result: dict[str, Any] = {
        "side": side,
        "topology": topology.name,
        "layers": LAYERS.value,
        "max_seq_length": LENGTH.value,
        "batch_size_per_chip": rows,
        "gradient_accumulation_steps": accumulation,
        "instances_per_row": instances_per_row(program.config.data, max_seq_length=LENGTH.value),
    }
    start = time.monotonic()
    try:
        compiled = compile_peer(program) if peer else compiling.compile_step(program, phase)
    except compiling.DoesNotFit as error:
        return result | {"fits": False, "needed_bytes": error.needed_bytes}
    if HLO.value:
        Path(f"{HLO.value}.{side}").write_text(compiled.hlo, encoding="utf-8")
    estimate = estimate_step(
        compiled,
        program=program,
        phase=phase,
        topology=topology,
        scaling=Scaling(program.config, topology),
        contents=row_contents(program.config, max_seq_length=LENGTH.value),
    )
    sequences = phase.batch_size / topology.num_devices  # cycles are those of a device
    peak = topology.chip.peak_flops * topology.num_chips
    return result | {
        "fits": True,
        "kcycles_per_sequence": estimate.cycles / sequences / 1e3,
        "kcycles_per_sequence_with_collectives": estimate.step_seconds * topology.chip.clock / sequences / 1e3,
        "compute_seconds": estimate.compute_seconds,
        "exposed_collective_seconds": estimate.exposed_seconds,
        "mfu_before_collectives": estimate.model_flops / estimate.compute_seconds / peak,
        "mfu": estimate.model_flops / estimate.step_seconds / peak,
        "hbm": memory_json(compiled, topology=topology),
        "collectives": collectives_json(estimate),
        "kernels": [dataclasses.asdict(kernel) for kernel in estimate.kernels],
        "unestimated": estimate.unestimated,
        "uncounted": dataclasses.asdict(estimate.uncounted),
        "compiler_options": dict(program.compiler_options.values),
        "compile_seconds": round(time.monotonic() - start, 1),
    }


def compile_peer(program: PretrainingProgram) -> compiling.CompiledStep:
    """Compile HuggingFace's step on the devices of `program`."""
    import huggingface_flax

    lowered = huggingface_flax.lower_step(
        program.config.model,
        devices=program.mesh.devices,
        batch_size=program.phases[0].batch_size,
        max_seq_length=LENGTH.value,
        hidden_act=PEER_ACT.value,
        prng=PRNG.value,
        remat=PEER_REMAT.value,
    )
    return compiling.compile_lowered(lowered, options=program.compiler_options.values)


def as_table(results: list[dict[str, Any]]) -> str:
    """Return a table with one line per side."""
    lines = [
        f"{'':<12} {'seqs':>4} {'K cycles/sequence':>18} {'with collectives':>17} {'exposed ms/step':>16} "
        f"{'MFU before':>11} {'MFU':>7} {'GiB/chip':>11}"
    ]
    for result in results:
        heading = f"{result['side']:<12} {result['batch_size_per_chip']:>4} "
        if not result["fits"]:
            needed = result["needed_bytes"]
            lines.append(heading + "does not fit" + (f": needs {needed / 2**30:.2f} GiB" if needed else ""))
            continue
        lines.append(
            heading + f"{result['kcycles_per_sequence']:>18,.1f} "
            f"{result['kcycles_per_sequence_with_collectives']:>17,.1f} "
            f"{result['exposed_collective_seconds'] * 1e3:>16.2f} {result['mfu_before_collectives']:>11.1%} "
            f"{result['mfu']:>7.1%} {result['hbm']['total_bytes'] / 2**30:>11.2f}"
        )
    return "\n".join(lines)


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return HuggingFace's cycles per sequence divided by ours; {} if a side is missing or does not fit."""
    sides = {result["side"]: result for result in results if result["fits"]}
    if set(sides) != {"ours", "huggingface"}:
        return {}
    names = ("kcycles_per_sequence", "kcycles_per_sequence_with_collectives")
    return {f"ratio_{name}": round(sides["huggingface"][name] / sides["ours"][name], 3) for name in names}


def main(argv: list[str]) -> None:
    """Compile the sides one after the other. Print each, then the comparison."""
    del argv
    compiling.prepare_environment()
    topology = parse_topology(TOPOLOGY.value)
    results = []
    for side in SIDES.value:
        results.append(measure(side, topology=topology))
        print(json.dumps(results[-1]), flush=True)
    print(as_table(results), file=sys.stderr)
    if comparison := ratios(results):
        print(json.dumps(comparison), flush=True)
        print("HuggingFace / ours: " + ", ".join(f"{n[6:]} {v}" for n, v in comparison.items()), file=sys.stderr)


if __name__ == "__main__":
    flags.register_validator("side", lambda sides: set(sides) <= {"ours", "huggingface"}, "ours, huggingface or both")
    app.run(main)
