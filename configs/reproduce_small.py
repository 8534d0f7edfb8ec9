"""The paper's tables on one accelerator, about an hour per table: models of 5 to 35 million parameters.

    python -m bert_jax.reproduce --table=5 --scale=small --data_dir=DATA --workdir=DIR

DATA has `pretrain_en` (the text), `glue`, `squad`, `swag`, `conll2003` and `blimp`. The vocabulary of 16,384 tokens is
learned from the text. BERT-Base of this scale sees 328 million tokens. Cost and results: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase
from bert_jax.config.reproduction import default_scale, scaled_task

GLUE = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_scale()
    config.pretraining = _pretraining()
    # The paper's depths divided by 1.5, its widths by 3.
    config.sizes = (
        "L-2_H-256_A-4",
        "L-4_H-256_A-1",
        "L-4_H-256_A-4",
        "L-8_H-256_A-4",
        "L-8_H-384_A-6",
        "L-16_H-384_A-6",
    )
    config.large = "L-16_H-384_A-6"
    config.lstm = "L-2_H-448_A-1"  # two models of 16 * 448^2 FLOPs per layer and token, BERT-Base has 24 * 256^2
    config.has_cased = False
    config.tasks = _tasks()
    config.measures = ("bits_per_byte", "minimal_pairs")
    config.minimal_pairs = "blimp/BLiMP.zip"
    config.seeds = 3
    config.notes = (
        "models of 5 to 35 million parameters instead of 110 and 340, and 328 million tokens instead of 128 billion",
        "an uncased vocabulary of 16,384 tokens for all tasks; the paper tags names with a cased model",
        "tasks are trained on at most 20,000 examples",
    )
    return config


def _pretraining() -> ConfigDict:
    config = default_config(model="L-8_H-256_A-4")
    config.model.vocab_size = 16384
    config.model.scan_layers = False
    config.data.input = "pretrain_en"
    config.train.phases = (phase(max_seq_length=128),)
    config.train.batch_size = 256
    config.train.num_steps = 10_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 1_000
    config.checkpoint.every = 500
    config.eval.every = 1_000
    config.eval.max_examples = 4096
    return config


def _tasks() -> tuple[ConfigDict, ...]:
    few = {"data.max_train_examples": 20_000, "optimizer.learning_rate": 1e-4}
    return (
        *(scaled_task(name, file=f"configs/finetune_glue.py:{name}", directory="glue", changes=few) for name in GLUE),
        scaled_task("squad_v1", file="configs/finetune_squad.py:v1", directory="squad", changes=few | _SQUAD),
        scaled_task("squad_v2", file="configs/finetune_squad.py:v2", directory="squad", changes=few | _SQUAD),
        scaled_task("swag", file="configs/finetune_swag.py", directory="swag", changes=few),
        scaled_task("ner", file="configs/finetune_ner.py", directory="conll2003", changes=_TAGS),
        scaled_task(
            "ner_features",
            file="configs/finetune_ner.py:concat_last_four",
            directory="conll2003",
            changes={"data.max_seq_length": 128, "ner.bilstm_hidden_size": 256},
        ),
    )


_SQUAD = {"data.max_seq_length": 128, "squad.doc_stride": 64, "squad.max_query_length": 32}
_TAGS = {"data.max_seq_length": 128, "optimizer.learning_rate": 2e-4}
