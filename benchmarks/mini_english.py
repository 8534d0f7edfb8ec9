r"""A `mini` BERT on real English (Wikipedia articles and novels) with a vocabulary learned from them: a config.

    mkdir -p /tmp/novels && tar -C /tmp/novels -xJf ../shared/data/pretrain_en/100_english_novels.tar.xz
    python -m bert_jax.prepare --input='../shared/data/pretrain_en/wiki_0[0-2],/tmp/novels/corpus/*.txt' \
        --vocab_size=30522 --max_seq_length=64 --heldout_fraction=0.05 --out=/tmp/english
    python -m bert_jax.train --config=benchmarks/mini_english.py \
        --config.data.directory=/tmp/english --workdir=/tmp/mini_english

Cost: 32 minutes of two CPU cores. Result: held-out masked-LM loss 6.012 beside 6.337 of the unigram model (curve in
`RESULTS.md`). Length, batch and schedule are what an hour of two CPU cores allows, not the paper's procedure.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(model="mini")
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.scan_layers = False  # four layers unrolled are faster on a CPU
    config.model.initializer_range = 0.05  # about 1 / sqrt(256); at 0.02 a short run lingers on the unigram plateau
    config.model.hidden_dropout_prob = 0.0  # less than one epoch
    config.model.attention_probs_dropout_prob = 0.0
    config.train.phases = (phase(max_seq_length=64),)
    config.train.batch_size = 32
    config.train.num_steps = 3000
    config.optimizer.learning_rate = 6e-4  # 2e-3 got stuck on a constant answer
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 250
    config.eval.every = 250
    config.eval.max_examples = 1024
    config.log.every = 50
    return config
