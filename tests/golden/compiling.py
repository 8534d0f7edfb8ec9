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

from bert_jax.planning.compiling import prepare_environment
from bert_jax.planning.hlo import HloProgram, Visit, parse_hlo
from bert_jax.planning.report import plan_run
from bert_jax.planning.topology import parse_topology
from tests.test_configs import load

LAYERS = 2
_MATMULS = ("convolution", "dot")


def versions() -> dict[str, str]:
    """Return the versions that decide what the compiler says; raises PackageNotFoundError without the plan extra."""
    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def facts(name: str) -> dict[str, Any]:
    """Return what the compiler says about `CONFIG@TOPOLOGY`; counts, bytes and cycles, nothing that is timed."""
    config_name, _, topology_name = name.partition("@")
    topology, config = parse_topology(topology_name), load(config_name)
    model = dataclasses.replace(config.model, num_hidden_layers=LAYERS)
    mesh = dataclasses.replace(config.mesh, slices=topology.slices)  # as the command line must say too
    config = dataclasses.replace(config, model=model, mesh=mesh)
    texts: list[str] = []
    plan = plan_run(config, topology=topology, report=lambda line: None, keep_hlo=texts.append)
    compiled = iter(texts)
    return {
        "config": config_name,
        "topology": topology_name,
        "layers": LAYERS,
        "versions": versions(),
        "mesh": plan["mesh"],
        "parameters": plan["parameters"],
        "phases": [
            phase_facts(phase, parse_hlo(next(compiled)) if "estimated_cycles" in phase else None)
            for phase in plan["phases"]
        ],
    }


def phase_facts(phase: dict[str, Any], program: HloProgram | None) -> dict[str, Any]:
    """Return the facts of a phase; `program` is None where it does not fit."""
    result = {name: phase[name] for name in ("max_seq_length", "batch_size", "gradient_accumulation_steps", "hbm")}
    if program is None:
        return result
    collectives = [
        {name: item[name] for name in ("kind", "network", "chips", "overlapped", "count", "bytes")}
        for item in phase["collectives"]
    ]
    return result | {
        "collectives": sorted(collectives, key=lambda item: json.dumps(item)),
        "estimated_cycles": phase["estimated_cycles"],
        "cycles": cycles_by_class(program),
        "kernels": sorted(phase["kernels"], key=lambda item: (item["name"], item["cycles"] or 0)),
        "unestimated": dict(sorted(phase["unestimated"].items())),
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
