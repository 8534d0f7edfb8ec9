"""The paper's tables on two CPU cores: models of a million parameters, text of 82 MB, less than three hours per table.

    python -m bert_jax.reproduce --table=5 --scale=tiny --data_dir=DATA --workdir=DIR

DATA has `pretrain_en` (the text), `glue`, `squad`, `conll2003` and `blimp`. The vocabulary of 8,192 tokens is learned
from the text. Tables 5, 6 and 8 and Figure 5 also measure minimal pairs and bits per byte, which differ between small
models where most tasks do not. Cost and results: benchmarks/RESULTS.md.
"""

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase
from bert_jax.config.reproduction import default_scale, scaled_task

LENGTH = 128
RATE = {"optimizer.learning_rate": 3e-4}  # models this small want more than the paper's 5e-5


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_scale()
    config.pretraining = _pretraining()
    # The paper's ratios: depth 3, 6, 12, 24 and width 768, 1024 become depth 1, 2, 4, 8 and width 128, 160.
    config.sizes = (
        "L-1_H-128_A-4",
        "L-2_H-128_A-1",
        "L-2_H-128_A-4",
        "L-4_H-128_A-4",
        "L-4_H-160_A-5",
        "L-8_H-160_A-5",
    )
    config.large = "L-8_H-160_A-5"
    config.lstm = "L-2_H-160_A-1"  # two models of 16 * 160^2 * 2 FLOPs per token, BERT-Base has 24 * 128^2 * 4
    config.has_cased = False
    config.tasks = _tasks()
    config.measures = ("sst2", "bits_per_byte", "minimal_pairs")  # Figure 5 and Table 8 have MNLI, which is not there
    config.minimal_pairs = "blimp/BLiMP.zip"
    config.pairs_per_paradigm = 200  # of 1,000
    config.seeds = 3
    config.points = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    config.flops_per_second = 5e10  # two cores: 86e9 at width 256 (benchmarks/cpu_step.py), less for narrower models
    config.notes = (
        "models of 2 to 5 million parameters instead of 110 and 340, steps and text of an hour on two CPU cores",
        "an uncased vocabulary of 8,192 tokens for all tasks; the paper tags names with a cased model",
        "MRPC: Microsoft's train and test files; SQuAD 2.0 and SWAG: one part of the dev set for training, one for dev",
        "tasks are trained on at most 8,000 examples",
    )
    return config


def _pretraining() -> ConfigDict:
    config = default_config(model="L-4_H-128_A-4")
    config.model.vocab_size = 8192
    config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.model.max_position_embeddings = 256
    config.model.initializer_range = 0.08  # 1 / sqrt(128), as in tiny_cpu.py
    config.model.hidden_dropout_prob = 0.0  # less than one epoch: nothing to regularize
    config.model.attention_probs_dropout_prob = 0.0
    config.model.scan_layers = False
    config.data.input = "pretrain_en"
    config.data.heldout_fraction = 0.02
    config.train.phases = (phase(max_seq_length=LENGTH),)
    config.train.batch_size = 32
    config.train.num_steps = 1600
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 160
    config.checkpoint.every = 160
    config.eval.every = 400
    config.eval.max_examples = 512
    config.log.every = 50
    return config


def _tasks() -> tuple[ConfigDict, ...]:
    small = {"data.max_train_examples": 8000, "data.max_eval_examples": 2000, "data.max_seq_length": LENGTH, **RATE}
    no_dev = {"data.dev_split": "test"}  # GLUE's dev rows of MRPC are not in the data

    def glue(name: str, **changes: object) -> ConfigDict:
        return scaled_task(
            name, file=f"configs/finetune_glue.py:{name}", directory="glue", changes={**small, **changes}
        )

    squad = {"data.max_seq_length": 256, "squad.doc_stride": 96, "train.num_epochs": 2.0}
    return (
        glue("cola"),
        glue("sst2"),
        glue("mrpc", **no_dev),
        glue("stsb"),
        glue("rte"),
        scaled_task(
            "squad_v1",
            file="configs/finetune_squad.py:v1",
            directory="squad",
            changes={**small, **squad, "squad.skip_bad_answers": True},
        ),
        scaled_task(
            "squad_v2",
            file="configs/finetune_squad.py:v2",
            directory="squad",
            changes={**small, **squad, "data.train_file": "dev-v2.0.json", "data.dev_fraction": 0.3},
        ),
        scaled_task(
            "swag",
            file="configs/finetune_swag.py",
            directory="swag",
            changes={**small, "data.train_file": "val_first500.csv", "data.dev_fraction": 0.3},
        ),
        scaled_task("ner", file="configs/finetune_ner.py", directory="conll2003", changes=_tagging()),
        scaled_task(
            "ner_features",
            file="configs/finetune_ner.py:concat_last_four",
            directory="conll2003",
            changes={"data.max_seq_length": 256, "ner.bilstm_hidden_size": 128, "train.num_epochs": 4.0},
        ),
    )


def _tagging() -> dict[str, object]:
    return {"data.max_seq_length": 256, "optimizer.learning_rate": 5e-4}
