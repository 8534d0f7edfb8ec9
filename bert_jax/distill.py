"""Distill a model into a smaller one, on text, or resume a run.

    bert-jax distill --teacher=MODEL --config=configs/distill_minilm.py --workdir=DIR

The student, of any width, learns the attention relations of a layer of its teacher (MiniLMv2). The config is that of
`train` with the group `distill`. `--init` and `--init_layers` start from a model instead of random
parameters. The same command resumes a stopped run.
"""

import time

from bert_jax import cli, invocation  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip
from ml_collections import config_flags

EXAMPLE = "configs/distill_minilm.py"
CONFIG = config_flags.DEFINE_config_file("config", help_string="Required. Config, FILE[:argument].", lock_config=True)
TEACHER = flags.DEFINE_string(
    "teacher",
    "",
    "Required. Model to learn from, with the student's vocabulary: a workdir, one of its checkpoints, a HuggingFace "
    "folder, or the prefix of a TF1 checkpoint.",
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Directory for checkpoints and metrics, and for the data set if none is given; default: runs/CONFIG.",
)
INIT = flags.DEFINE_string("init", "", "Model to start from, with the teacher's vocabulary; default: random.")
INIT_MISSING = flags.DEFINE_list(
    "init_missing", [], "Parts to initialize randomly if the model lacks them: masked_lm,next_sentence."
)
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the --init model to drop.")
INIT_LAYERS = flags.DEFINE_list(
    "init_layers", [], "Layers of the --init model to keep, numbers from 0, for example 1,3,5; default: all."
)
HOST_TIMEOUT = flags.DEFINE_float("host_timeout", 600.0, "Seconds that the hosts of a pod wait for each other.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print mesh, parameters and schedule, then exit.")


def main() -> int:
    """Read the flags, join the other hosts, and distill."""
    started_at = time.time()
    cli.require_config(CONFIG.value, example=EXAMPLE)
    from bert_jax import config as configs
    from bert_jax.errors import UserError
    from bert_jax.parallel import distributed
    from bert_jax.pretrain import distillation

    if not TEACHER.value:
        raise UserError("--teacher is missing: name the model to learn from")
    config = configs.from_config_dict(CONFIG.value)
    workdir = WORKDIR.value or cli.default_workdir()
    options = {"init": INIT.value, "init_missing": INIT_MISSING.value, "drop": DROP.value}
    options["init_layers"] = INIT_LAYERS.value
    if DRY_RUN.value:
        print(distillation.describe(config, teacher=TEACHER.value, workdir=workdir, **options))
        return 0

    def distill(hosts: distributed.Hosts) -> int:
        return distillation.distill(
            config,
            teacher=TEACHER.value,
            workdir=workdir,
            hosts=hosts,
            command=invocation.same_command(),
            started_at=started_at,
            **options,
        )

    return distributed.run_on_hosts(distill, seconds=HOST_TIMEOUT.value)


if __name__ == "__main__":
    cli.run(main)
