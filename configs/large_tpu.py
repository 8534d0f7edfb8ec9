"""BERT-Large: the paper's procedure, or the large-batch LAMB recipe as an argument.

    python -m bert_jax.train --config=configs/large_tpu.py
    python -m bert_jax.train --config=configs/large_tpu.py:lamb_64k --config.data.directory=data --workdir=large

The first form trains on the English Wikipedia of TFDS (20 GB), prepared on the first start, in runs/large_tpu.

`paper` (the default; Devlin et al. 2018, A.2): 1,000,000 steps of batch 256, Adam 1e-4, warm-up 10,000, dropout 0.1,
90 % at 128 and 10 % at 512. The paper: 4 days on 64 TPU chips; held-out perplexity 3.23, MNLI 86.6 (Table 6). Data:
`prepare --recipe=original`.

`lamb_64k` (You et al. 2020, in the two-phase form published with NVIDIA's BERT): 7,038 steps of 65,536 at 128, then
1,563 of 32,768 at 512, each phase with its own warm-up. Published: SQuAD v1.1 F1 90.6 to 91. Data: `prepare
--recipe=modern`.

Cost of `paper` by `plan`, not run on hardware: v5e:4x4 11.5 hours, 184 chip-hours; v5e:8x8 9.5 hours, 608 chip-hours,
because 4 sequences per chip are too few to hide communication.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase
from bert_jax.errors import UserError


def get_config(recipe: str = "paper") -> ConfigDict:
    """Return the config of `recipe`: paper or lamb_64k."""
    config = default_config(model="large")
    config.data.input = "tfds:wikipedia/20230601.en"
    config.model.scan_layers = False  # 1.4 times as fast on a TPU as scanned layers; compiles once, in minutes
    config.checkpoint.every = 5_000
    config.checkpoint.keep_every = 100_000
    config.eval.every = 10_000
    if recipe == "paper":
        config.recipe = "original"
        config.train.num_steps = 1_000_000
        config.train.batch_size = 256
        config.train.phases = (
            phase(fraction=0.9, max_seq_length=128, max_predictions_per_seq=20),
            phase(fraction=0.1, max_seq_length=512, max_predictions_per_seq=77),
        )
        config.optimizer.learning_rate = 1e-4
        config.optimizer.warmup_steps = 10_000
    elif recipe == "lamb_64k":
        config.optimizer.name = "lamb"
        config.train.num_steps = 7_038 + 1_563
        config.train.batch_size = 65_536  # = 256 chips x 32 sequences x 8 accumulation steps
        config.train.gradient_accumulation_steps = 8
        config.train.phases = (
            phase(
                fraction=7_038 / 8_601,
                max_seq_length=128,
                max_predictions_per_seq=20,
                learning_rate=6e-3,
                warmup_steps=2_001,  # 0.2843 of the phase
            ),
            phase(
                fraction=1_563 / 8_601,
                max_seq_length=512,
                max_predictions_per_seq=77,
                batch_size=32_768,
                learning_rate=4e-3,
                warmup_steps=200,  # 0.128 of the phase
            ),
        )
        config.checkpoint.every = 200
        config.checkpoint.keep_every = 0
        config.eval.every = 200
        config.log.every = 20
    else:
        raise UserError(f"configs/large_tpu.py:{recipe}: the argument must be one of paper, lamb_64k")
    return config
