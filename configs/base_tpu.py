"""BERT-Base with the paper's procedure (section A.2): 90 % of 1,000,000 steps at 128, 10 % at 512, batch 256.

    python -m bert_jax.train --config=configs/base_tpu.py
    python -m bert_jax.prepare --input='corpus/*.txt' --out=data --vocab=vocab.txt --recipe=original
    python -m bert_jax.train --config=configs/base_tpu.py --config.data.directory=data --workdir=base
    python -m bert_jax.train --config=configs/base_tpu.py:modernbert-base --workdir=modernbert

The first line trains on the English Wikipedia of TFDS (20 GB), prepared on the first start, in runs/base_tpu. The
paper trained it in 4 days on 16 TPU chips. Expect (paper, Table 6): held-out perplexity about 4.0 on books and
Wikipedia; MNLI 84.4 after fine-tuning. Cost by `plan` on v5e:4x4, not run on hardware: 3.9 hours, 62 chip-hours.

The argument is another shape, for a comparison at equal steps: any L-x_H-y[_A-z] (L-3_H-768_A-12 is the first row of
Table 6), or a preset of ModernBERT (modernbert-base, modernbert-large, ettin-17m to ettin-1b), which has no
next-sentence prediction and is trained with bias correction: it does not reproduce ModernBERT's own recipe.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config(model: str = "base") -> ConfigDict:
    """Return the config for the preset `model`."""
    config = default_config(model=model)
    config.data.input = "tfds:wikipedia/20230601.en"
    config.model.scan_layers = False  # 1.4 times as fast on a TPU as scanned layers; compiles once, in minutes
    if config.model.architecture == "modernbert":
        config.data.objective = "mlm"
    else:
        config.recipe = "original"
    config.train.num_steps = 1_000_000
    config.train.batch_size = 256
    config.train.phases = (
        phase(fraction=0.9, max_seq_length=128, max_predictions_per_seq=20),
        phase(fraction=0.1, max_seq_length=512, max_predictions_per_seq=77),
    )
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.checkpoint.every = 5_000
    config.checkpoint.keep_every = 100_000
    config.eval.every = 10_000
    return config
