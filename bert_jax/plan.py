"""Estimate memory, time and cost of a run on TPUs: `bert-jax plan --config=FILE --topology=v5e:4x4`.

Compiles the training step with the real TPU compiler on a machine without a TPU (extra `plan`). Prints a table on a
terminal, JSON otherwise. `--sweep='batch=16,32;remat=none,dots'` compares variants and names the best.
"""

import json
import sys
from pathlib import Path

from bert_jax import cli, streams  # first: cli quiets the libraries that the next imports load

from absl import flags  # isort: skip
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="Required. Config, FILE[:argument].", lock_config=True)
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "Required. TPU slice: v5e:4x4, v5p:2x2x4, v6e:16x16; several slices: 2xv5e:16x16."
)
HLO = flags.DEFINE_string("hlo", "", "File for the compiled program (HLO); later phases add .1, .2.")
SWEEP = flags.DEFINE_string(
    "sweep", "", "Variants to compare, as in 'batch=16,32;remat=none,dots': batch (per chip), mesh, remat, attention."
)


def main() -> int:
    """Read the flags and plan."""
    streams.require_output(remedy="redirect it to a file")
    cli.require_config(CONFIG.value, example="configs/large_tpu.py")
    from bert_jax import config as configs
    from bert_jax.errors import UserError
    from bert_jax.files import write_text
    from bert_jax.locations import output_file
    from bert_jax.planning import compiling, report, sweep
    from bert_jax.planning.topology import parse_topology

    if not TOPOLOGY.value:
        raise UserError("--topology is missing: name a slice, for example --topology=v5e:4x4")
    if HLO.value and SWEEP.value:
        raise UserError("--hlo writes the program of a single plan: leave out --sweep, or leave out --hlo")
    if HLO.value:
        output_file(HLO.value, name="--hlo")
    compiling.prepare_environment()
    config = configs.from_config_dict(CONFIG.value)
    if config.distill is not None:
        raise UserError("config.distill: plan does not know the teacher of a distillation: plan a config of train")
    topology = parse_topology(TOPOLOGY.value)

    programs: list[Path] = []

    def keep(text: str) -> None:
        path = Path(HLO.value + (f".{len(programs)}" if programs else ""))
        programs.append(path)
        write_text(path, text)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if SWEEP.value:
        plan = sweep.sweep(config, topology=topology, variants=sweep.parse_variants(SWEEP.value), report=say)
        text = sweep.as_table(plan)
    else:
        plan = report.plan_run(config, topology=topology, report=say, keep_hlo=keep if HLO.value else None)
        text = report.as_table(plan)
    print(text if sys.stdout.isatty() else json.dumps(plan, indent=2))
    return 0 if plan["fits"] else 1


if __name__ == "__main__":
    cli.run(main, buckets=("config.data.directory",))
