"""An encoder by what the encoders of 2024 to 2026 agree on, in the shape that the argument names (default `base`).

    python -m bert_jax.train --config=configs/encoder_2026.py
    python -m bert_jax.train --config=configs/encoder_2026.py:L-6_H-384_A-12 --config.data.directory=data --workdir=e

The first form trains on the English Wikipedia of TFDS (20 GB), prepared on the first start, in runs/encoder_2026.

What differs from the paper's procedure, each with who does so (ModernBERT, NeoBERT, Ettin, mmBERT, EuroBERT):

* no next-sentence prediction (all);
* masks of 30 % of the tokens, 15 % and then 5 % towards the end (mmBERT; the others 20 to 50 %, then less). Held-out
  metrics are at 15 % throughout, so that they compare with BERT's;
* no dropout (NeoBERT, EuroBERT). That is for text seen once; set 0.1 where it is repeated more than a few times;
* StableAdamW without clipping, beta2 0.98, rate 8e-4 (ModernBERT, Ettin). Their decoupled decay of 1e-5 is 1e-5 / 8e-4
  in units of the rate. `--config.optimizer.name=muon` is the alternative of 2025;
* warm-up, stable, decay by 1 - sqrt (ModernBERT, Ettin, mmBERT, EuroBERT), so that a run can be continued before its
  decay: `--continue_from` (docs/howto/continuing.md);
* a batch that grows (ModernBERT, Ettin): a quarter, a half, all;
* packed sequences (all but NeoBERT), here of 512 from the first step.

100,000 steps of up to 1,024 sequences of 512 are 50 billion tokens. Cost by `plan` on v5e:4x4, not run on hardware: 4.5
hours, 71 chip-hours. Result: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config(model: str = "base") -> ConfigDict:
    """Return the config of a model preset: tiny, mini, small, medium, base, large, or L-6_H-384_A-12 and the like."""
    config = default_config(model=model)
    config.data.input = "tfds:wikipedia/20230601.en"
    config.data.objective = "mlm"
    config.data.pack = True
    config.model.scan_layers = False  # 1.4 times as fast on a TPU as scanned layers; compiles once, in minutes
    config.model.hidden_dropout_prob = 0.0
    config.model.attention_probs_dropout_prob = 0.0
    config.train.num_steps = 100_000
    config.train.batch_size = 1_024
    config.train.phases = (
        phase(fraction=0.05, max_seq_length=512, batch_size=256, masking_rate=0.3),
        phase(fraction=0.05, max_seq_length=512, batch_size=512, masking_rate=0.3),
        phase(fraction=0.7, max_seq_length=512, masking_rate=0.3),
        phase(fraction=0.1, max_seq_length=512),
        phase(fraction=0.1, max_seq_length=512, masking_rate=0.05),
    )
    config.optimizer.name = "stable_adamw"
    config.optimizer.schedule = "wsd"
    config.optimizer.learning_rate = 8e-4
    config.optimizer.warmup_steps = 2_000
    config.optimizer.decay_steps = 10_000
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 1e-5 / 8e-4
    config.optimizer.max_grad_norm = 0.0
    config.checkpoint.every = 2_000
    config.checkpoint.keep_every = 10_000
    config.eval.every = 2_000
    return config
