"""Pre-train BERT from text, or resume or continue a run.

    python -m bert_jax.train --config=configs/tiny_cpu.py --workdir=DIR

Any field is changed on the command line: `--config.train.batch_size=64`. Run again, it resumes; `--dry_run` shows mesh,
parameters and schedule and stops. `--init=SOURCE` goes on from a released or an own model, on other text.
"""

import sys
import time

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, FILE[:argument].", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "Directory for checkpoints, metrics and, unless given, the data set.")
INIT = flags.DEFINE_string("init", "", "SOURCE to begin from: a workdir, a HuggingFace folder or a TF1 prefix.")
INIT_MISSING = flags.DEFINE_list(
    "init_missing", [], "Parts to draw where the SOURCE lacks them: masked_lm,next_sentence."
)
HOST_TIMEOUT = flags.DEFINE_float("host_timeout", 600.0, "Seconds that the hosts of a pod wait for each other.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print mesh, parameters and schedule, and stop.")


def main() -> int:
    """Read the flags, join the other hosts if there are any, and call the one function."""
    begun = time.time()
    from bert_jax import config as configs
    from bert_jax.convert.loading import load_pretrained
    from bert_jax.errors import UserError
    from bert_jax.parallel import distributed
    from bert_jax.parallel import mesh as meshes
    from bert_jax.pretrain import dry_run, program, run
    from bert_jax.pretrain.continuing import adopt_source

    if CONFIG.value is None:
        raise UserError("--config is missing: give a config file, for example --config=configs/tiny_cpu.py")
    config = configs.from_config_dict(CONFIG.value)
    if DRY_RUN.value:
        if INIT.value:
            source = load_pretrained(INIT.value, init_missing=INIT_MISSING.value)
            config = adopt_source(config, source=source, workdir=WORKDIR.value, report=print)
        print(dry_run.describe_run(program.PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))))
        return 0
    if not WORKDIR.value:
        raise UserError("--workdir is missing: give the directory that is to hold checkpoints and metrics")
    command = " ".join(["python -m bert_jax.train", *sys.argv[1:]])

    def train(hosts: distributed.Hosts) -> int:
        return run.pretrain(
            config,
            workdir=WORKDIR.value,
            command=command,
            init=INIT.value,
            init_missing=INIT_MISSING.value,
            hosts=hosts,
            started_at=begun,
        )

    return distributed.run_on_hosts(train, seconds=HOST_TIMEOUT.value)


if __name__ == "__main__":
    cli.run(main)
