"""SWAG (paper section 4.4): 3 epochs, learning rate 2e-5, batch 16.

    python -m bert_jax.finetune --config=configs/finetune_swag.py --init=MODEL --data_dir=DIR --workdir=DIR

Cost and results: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(task="swag")
    config.data.max_seq_length = 128  # of each choice
    config.optimizer.learning_rate = 2e-5
    config.train.batch_size = 16
    config.train.num_epochs = 3.0
    return config
