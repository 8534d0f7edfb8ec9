"""A small BERT (4 layers, 512 wide) on one TPU chip of Colab: from your text to a useful encoder in an afternoon.

    python -m bert_jax.train --config=configs/colab_tpu.py --config.data.input='texts/*.txt' --workdir=small

Without `data.input` it trains on the Simple English Wikipedia of TFDS (0.2 GB), prepared on the first start.

100,000 steps of batch 256 at length 128. The argument is another size, any L-x_H-y[_A-z]: colab_tpu.py:L-6_H-256. Cost
by `plan` on v5e:1x1, not run on hardware: 1.2 hours. Result: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config(size: str = "small") -> ConfigDict:
    """Return the config of a model of `size`."""
    config = default_config(model=size)
    config.data.input = "tfds:wikipedia/20230601.simple"
    config.model.scan_layers = False  # four layers compile quickly either way
    config.train.num_steps = 100_000
    config.train.batch_size = 256
    config.train.phases = (phase(max_seq_length=128, max_predictions_per_seq=20),)
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 5_000
    config.checkpoint.every = 1_000  # Colab may reclaim a machine without warning
    config.checkpoint.keep_latest = 2
    config.eval.every = 2_500
    return config
