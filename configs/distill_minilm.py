"""MiniLMv2 (Wang et al. 2021, sections 3 and 4.1): a student of six layers and half the width of its teacher.

    python -m bert_jax.distill --teacher=MODEL --config=configs/distill_minilm.py --workdir=DIR

The teacher is BERT-Base (its last layer teaches, 48 relation heads) or BERT-Large (layer 21 of 24; 64 heads:
--config.distill.relation_heads=64). The argument is the student's shape, for example L-12_H-384_A-12. Its vocabulary is
the teacher's.

The paper trains with AdamW for 400,000 steps of 256 sequences of 512 tokens at a rate of 6e-4, 4,000 of them warm-up,
on the text of BERT. The loss is that of the relations alone: heads and the rest of the last layer stay as they were
initialized, so fine-tune the student. It reads text without masks: the paper does not mention any.

131,072 tokens per step are 52 billion tokens. Cost and result: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config(student: str = "L-6_H-384_A-12") -> ConfigDict:
    """Return the config of a student of a model preset: L-6_H-384_A-12, mini, and the like."""
    config = default_config(model=student, distill=True)
    config.data.input = "tfds:wikipedia/20230601.en"
    config.data.objective = "mlm"
    config.data.pack = True
    config.model.scan_layers = False  # 1.4 times as fast on a TPU as scanned layers, for the teacher too
    config.masking.mask_share = 0.0
    config.masking.random_share = 0.0
    config.masking.same_share = 1.0
    config.train.num_steps = 400_000
    config.train.batch_size = 256
    config.train.phases = (phase(max_seq_length=512),)
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 4_000
    config.checkpoint.every = 5_000
    config.eval.every = 10_000
    return config
