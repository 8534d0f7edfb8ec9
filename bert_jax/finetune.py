"""Fine-tune a model on tasks of the paper or on custom data.

    bert-jax finetune --config=configs/finetune_glue.py:mrpc --init=MODEL --data_dir=DIR --workdir=DIR

`--sweep` runs the paper's grid; `--seeds=5` runs each setting with five seeds. The same command resumes a stopped run.
"""

import time

from bert_jax import cli, invocation  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="Required. Config, FILE[:argument].", lock_config=True)
INIT = flags.DEFINE_string(
    "init",
    "",
    "Required. Model to start from: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 "
    "checkpoint; or A,B: two LSTM language models, one per direction, whose states are concatenated.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "The data: a folder with the task's official files or your own, one file, or tfds:NAME for GLUE."
)
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Directory for results, predictions and the best checkpoint; default: runs/CONFIG."
)
TASK = flags.DEFINE_string("task", "", "Task, replaces the config's; several separated by commas; all: GLUE.")
SWEEP = flags.DEFINE_bool("sweep", False, "Run every setting of config.sweep.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Random seeds per setting.")
ERRORS = flags.DEFINE_integer("errors", 0, "Write N wrong predictions on dev to a file.")
ENSEMBLE = flags.DEFINE_integer("ensemble", 0, "Average the outputs of the N best runs.")
PREDICT_TEST = flags.DEFINE_bool("predict_test", False, "Also predict the test sets; for GLUE as a zip file to submit.")
ADD_TOKENS = flags.DEFINE_list(
    "add_tokens", [], "Tokens to add to the vocabulary: kept whole in text, each with a new row of the embeddings."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print files, labels, lengths, examples and the steps of the runs, then exit."
)
TEACHER = flags.DEFINE_string(
    "teacher", "", "Model whose outputs are learned besides the labels (config.distill), fine-tuned for the same task."
)
INIT_LAYERS = flags.DEFINE_list(
    "init_layers", [], "Layers of the --init model to keep, numbers from 0, for example 0,2,4; default: all."
)
HOST_TIMEOUT = flags.DEFINE_float("host_timeout", 600.0, "Seconds that the hosts of a pod wait for each other.")
INIT_MISSING = flags.DEFINE_list("init_missing", [], "Parts to initialize randomly, for example classifier.")
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the --init model to drop.")


def main() -> int:
    """Read the flags, join the other hosts, and fine-tune."""
    started_at = time.time()
    cli.require_config(CONFIG.value, example="configs/finetune_own.py:classification")
    from bert_jax.config import finetuning as configs
    from bert_jax.errors import UserError
    from bert_jax.finetuning import finetune
    from bert_jax.parallel import distributed

    if not INIT.value:
        raise UserError(
            "--init is missing: type --init=MODEL, a workdir, a HuggingFace folder, or the prefix of a TF1 checkpoint"
        )
    raw = CONFIG.value.to_dict()
    if DATA_DIR.value:
        raw["data"]["directory"] = DATA_DIR.value
    if TASK.value:
        raw["task"] = TASK.value
    if TEACHER.value:
        raw["distill"]["teacher"] = TEACHER.value
    request = finetune.Request(
        init=INIT.value,
        workdir=WORKDIR.value or ("" if DRY_RUN.value else cli.default_workdir()),
        sweep=SWEEP.value,
        seeds=SEEDS.value,
        errors=ERRORS.value,
        ensemble=ENSEMBLE.value,
        predict_test=PREDICT_TEST.value,
        init_missing=tuple(INIT_MISSING.value),
        drop=tuple(DROP.value),
        dry_run=DRY_RUN.value,
        add_tokens=tuple(ADD_TOKENS.value),
        init_layers=tuple(INIT_LAYERS.value),
        command=invocation.same_command(),
    )
    config = configs.from_config_dict(raw)

    def on_host(hosts: distributed.Hosts) -> int:
        return finetune.finetune(config, request=request, hosts=hosts, started_at=started_at)

    return distributed.run_on_hosts(on_host, seconds=HOST_TIMEOUT.value)


def _config() -> type:
    from bert_jax.config.finetuning import FinetuneConfig

    return FinetuneConfig


if __name__ == "__main__":
    cli.run(main, config=_config, buckets=("init",))
