"""GLUE (paper section 4.1): batch 32, 3 epochs, the best learning rate of the sweep on dev.

    python -m bert_jax.finetune --config=configs/finetune_glue.py:mrpc --init=MODEL --data_dir=GLUE --workdir=DIR

The argument is a task or all: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, or all. Several are separated by
commas. The paper's procedure is `--sweep --seeds=5`. benchmarks/RESULTS.md compares results of all-MiniLM-L6-v2 with
HuggingFace's; results at the paper's model sizes: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config(task: str = "mrpc") -> ConfigDict:
    """Return the config of a task."""
    config = default_config(task=task)
    config.data.max_seq_length = 128
    config.train.batch_size = 32
    config.train.num_epochs = 3.0
    config.optimizer.learning_rate = 3e-5
    return config
