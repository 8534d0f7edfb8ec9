"""Pre-train BERT from text, or resume or continue a run.

    bert-jax train --config=configs/tiny_cpu.py --workdir=DIR

Override any config field on the command line: `--config.train.batch_size=64`. The same command resumes a stopped run.
`--dry_run` prints mesh, parameters and schedule, then exits. `--init=MODEL` continues from an existing model.
"""

import time

from bert_jax import cli, invocation  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="Required. Config, FILE[:argument].", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Directory for checkpoints and metrics, and for the data set if none is given, or gs://BUCKET/FOLDER; default: "
    "runs/CONFIG.",
)
INIT = flags.DEFINE_string(
    "init",
    "",
    "Model to start from: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint.",
)
INIT_MISSING = flags.DEFINE_list(
    "init_missing", [], "Parts to initialize randomly if the model lacks them: masked_lm,next_sentence."
)
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the --init model to drop.")
INIT_LAYERS = flags.DEFINE_list(
    "init_layers", [], "Layers of the --init model to keep, numbers from 0, for example 0,2,4; default: all."
)
CONTINUE_FROM = flags.DEFINE_string(
    "continue_from",
    "",
    "Run to continue as a new run, with another batch size or schedule: a workdir or one of its checkpoints. Its "
    "parameters, optimizer state and step are copied to --workdir.",
)
HOST_TIMEOUT = flags.DEFINE_float("host_timeout", 600.0, "Seconds that the hosts of a pod wait for each other.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print mesh, parameters and schedule, then exit.")


def main() -> int:
    """Read the flags, join the other hosts, and train."""
    started_at = time.time()
    cli.require_config(CONFIG.value, example="configs/tiny_cpu.py")
    from bert_jax import config as configs
    from bert_jax.parallel import distributed
    from bert_jax.parallel import mesh as meshes
    from bert_jax.pretrain import dry_run, open_values, program, run

    config = configs.from_config_dict(CONFIG.value)
    workdir = WORKDIR.value or cli.default_workdir()
    if DRY_RUN.value:
        source = run.load_source(INIT.value, init_missing=INIT_MISSING.value, drop=DROP.value, layers=INIT_LAYERS.value)
        config = dry_run.config_of_start(config, workdir=workdir, source=source, continue_from=CONTINUE_FROM.value)
        planned = program.PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
        print(dry_run.describe_run(planned, infos=open_values.finished_infos(config)))
        return 0

    def train(hosts: distributed.Hosts) -> int:
        return run.pretrain(
            config,
            workdir=workdir,
            command=invocation.same_command(),
            init=INIT.value,
            init_missing=INIT_MISSING.value,
            drop=DROP.value,
            init_layers=INIT_LAYERS.value,
            continue_from=CONTINUE_FROM.value,
            hosts=hosts,
            started_at=started_at,
        )

    return distributed.run_on_hosts(train, seconds=HOST_TIMEOUT.value)


if __name__ == "__main__":
    cli.run(main, buckets=("workdir", "init", "config.data.directory"))
