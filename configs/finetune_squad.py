"""SQuAD 1.1 (paper section 4.2: 3 epochs, 5e-5, batch 32) and 2.0 (section 4.3: 2 epochs, 5e-5, batch 48).

    python -m bert_jax.finetune --config=configs/finetune_squad.py:v1 --init=MODEL --data_dir=DIR --workdir=DIR

The argument is the version: v1 or v2. Windows as in run_squad.py: 384 tokens, stride 128. Result of all-MiniLM-L6-v2 on
1.1 with batch 64 at 2e-4, two epochs in 3 minutes on an H200: F1 83.1, exact match 73.9 (benchmarks/RESULTS.md). The
paper's model sizes: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config(version: str = "v1") -> ConfigDict:
    """Return the config of SQuAD `v1` or `v2`."""
    config = default_config(task=f"squad_{version}")
    config.data.max_seq_length = 384
    config.optimizer.learning_rate = 5e-5
    config.train.batch_size = 48 if version == "v2" else 32
    config.train.num_epochs = 2.0 if version == "v2" else 3.0
    return config
