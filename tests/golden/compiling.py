"""What the TPU compiler says, in a process of its own: `python -m tests.golden.compiling CONFIG@TOPOLOGY...`.

Prints a JSON object per program. Full widths, batches and lengths; `LAYERS` layers, so that a program compiles in
seconds. HBM and the state's collectives are those of that depth; cycles and collectives per layer are a layer's own.
"""

import collections
import dataclasses
import json
import sys
import time
from importlib import metadata
from typing import Any

import jax

from bert_jax.planning.compiling import DoesNotFit, compile_step, make_program, prepare_environment
from bert_jax.planning.estimate import collectives_json, estimate_step, memory_json, row_contents
from bert_jax.planning.hlo import HloProgram, Visit, parse_hlo
from bert_jax.planning.scaling import Scaling
from bert_jax.planning.topology import Topology, parse_topology
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.training.schedule import Phase
from tests.golden.tables import PROGRAMS
from tests.test_configs import load

LAYERS = 2
_MATMULS = ("convolution", "dot")


def versions() -> dict[str, str]:
    """Return the versions that decide what the compiler says; raises PackageNotFoundError without the plan extra."""
    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def facts(name: str) -> dict[str, Any]:
    """Return what the compiler says about a program of the tables; counts, bytes and cycles, nothing that is timed."""
    config_name, _, topology_name = name.partition("@")
    topology, config = parse_topology(topology_name), load(config_name)
    model = dataclasses.replace(config.model, num_hidden_layers=LAYERS)
    mesh = dataclasses.replace(config.mesh, slices=topology.slices)  # as the command line must say too
    config = dataclasses.replace(config, model=model, mesh=mesh)
    program = make_program(config, topology=topology)
    chosen = PROGRAMS.get(name, range(len(program.phases)))
    return {
        "config": config_name,
        "topology": topology_name,
        "layers": LAYERS,
        "versions": versions(),
        "mesh": dict(program.mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.state_shapes.params)),
        "phases": [phase_facts(program, program.phases[index], topology=topology) for index in chosen],
    }


def phase_facts(program: PretrainingProgram, phase: Phase, *, topology: Topology) -> dict[str, Any]:
    """Return the facts of a phase; where it does not fit, how much memory it needs."""
    heading = {"max_seq_length": phase.max_seq_length, "batch_size": phase.batch_size}
    try:
        compiled = compile_step(program, phase)
    except DoesNotFit as error:
        return heading | {"hbm": {"total_bytes": error.needed_bytes, "fits": False}}
    estimate = estimate_step(
        compiled,
        program=program,
        phase=phase,
        topology=topology,
        scaling=Scaling(program.config, topology),
        contents=row_contents(program.config, max_seq_length=phase.max_seq_length),
    )
    collectives = [
        {name: item[name] for name in ("kind", "network", "chips", "overlapped", "count", "bytes")}
        for item in collectives_json(estimate)
    ]
    kernels = [{"name": kernel.name, "cycles": kernel.cycles, "times": kernel.times} for kernel in estimate.kernels]
    return heading | {
        "hbm": memory_json(compiled, topology=topology),
        "collectives": sorted(collectives, key=json.dumps),
        "estimated_cycles": estimate.cycles,
        "cycles": cycles_by_class(parse_hlo(compiled.hlo)),
        "kernels": sorted(kernels, key=lambda item: (item["name"], item["cycles"] or 0)),
        "unestimated": dict(sorted(estimate.unestimated.items())),
    }


def cycles_by_class(program: HloProgram) -> dict[str, dict[str, int]]:
    """Return the compiler's estimates by pass and kind of operation; our kernels, which it has none for, apart."""
    totals: dict[str, dict[str, int]] = collections.defaultdict(lambda: collections.defaultdict(int))
    for visit in program.visits():
        if visit.instruction.cycles:
            totals[_pass(visit)][_kind(visit, program)] += visit.instruction.cycles * visit.times
    return {name: dict(sorted(totals[name].items())) for name in sorted(totals)}


def _pass(visit: Visit) -> str:
    name = visit.instruction.op_name
    return "backward" if "transpose(jvp(" in name else "forward" if "jvp(" in name else "update and masks"


def _kind(visit: Visit, program: HloProgram) -> str:
    item = visit.instruction
    inside = {inner.opcode for name in item.called for inner in program.computations.get(name, ())}
    if item.opcode in _MATMULS or inside & set(_MATMULS):
        return "matmul"
    return "copy" if item.opcode.startswith("copy") else "elementwise and reductions"


def main() -> None:
    """Compile the programs that the command line names."""
    prepare_environment()
    for name in sys.argv[1:]:
        start = time.monotonic()
        result = facts(name)
        print(json.dumps({"name": name, "seconds": time.monotonic() - start, "facts": result}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
