r"""Config: pre-train a `mini` BERT on English text (Wikipedia articles and novels), with a vocabulary learned from it.

    mkdir -p /tmp/novels && tar -C /tmp/novels -xJf ../shared/data/pretrain_en/100_english_novels.tar.xz
    python -m bert_jax.prepare --input='../shared/data/pretrain_en/wiki_0[0-2],/tmp/novels/corpus/*.txt' \
        --vocab_size=30522 --max_seq_length=64 --heldout_fraction=0.05 --out=/tmp/english
    python -m bert_jax.train --config=benchmarks/mini_english.py \
        --config.data.directory=/tmp/english --workdir=/tmp/mini_english

Cost: 32 minutes on two CPU cores. Result: held-out masked-LM loss 6.012, compared with 6.337 of the unigram model; the
curve is in `RESULTS.md`. Length, batch size and schedule fit into an hour on two CPU cores; they are not the paper's.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_config(model="mini")
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.scan_layers = False  # unrolled layers are faster on a CPU
    config.model.initializer_range = 0.05  # about 1 / sqrt(256); at 0.02 a short run stays on the unigram plateau
    config.model.hidden_dropout_prob = 0.0  # less than one epoch
    config.model.attention_probs_dropout_prob = 0.0
    config.train.phases = (phase(max_seq_length=64),)
    config.train.batch_size = 32
    config.train.num_steps = 3000
    config.optimizer.learning_rate = 6e-4  # with 2e-3 the model predicted the same for all inputs
    config.optimizer.warmup_steps = 100
    config.checkpoint.every = 250
    config.eval.every = 250
    config.eval.max_examples = 1024
    config.log.every = 50
    return config
