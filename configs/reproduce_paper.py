"""The paper's tables with the paper's models, steps and procedures, on TPU pods.

    python -m bert_jax.reproduce --table=5 --scale=paper --data_dir=DATA --workdir=DIR

Pre-training is configs/base_tpu.py: English Wikipedia from TFDS, 1,000,000 steps of 256 sequences. DATA has the
official files in `glue`, `squad`, `swag` and `conll2003`, and `triviaqa/train.json` in SQuAD's format for two rows of
Table 2. Cost: `--dry_run --topology=v5e:4x4` plans it; the paper trained BERT-Base in 4 days on 16 TPU chips, and
Table 6 alone has six models. Results: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config import files
from bert_jax.config.reproduction import default_scale, scaled_task

GLUE = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")
# Section 4.1: batch 32, 3 epochs, the best of four learning rates on dev.
GRID = {"sweep.batch_size": (32,), "sweep.learning_rate": (5e-5, 4e-5, 3e-5, 2e-5), "sweep.num_epochs": (3.0,)}


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_scale()
    config.pretraining = ConfigDict(files.load("configs/base_tpu.py"))
    config.tasks = (
        *(
            scaled_task(n, file=f"configs/finetune_glue.py:{n}", directory="glue", sweep=True, changes=GRID)
            for n in GLUE
        ),
        scaled_task("squad_v1", file="configs/finetune_squad.py:v1", directory="squad"),
        scaled_task("squad_v2", file="configs/finetune_squad.py:v2", directory="squad"),
        scaled_task("swag", file="configs/finetune_swag.py", directory="swag"),
        scaled_task("ner", file="configs/finetune_ner.py", directory="conll2003"),
        scaled_task("ner_features", file="configs/finetune_ner.py:concat_last_four", directory="conll2003"),
    )
    config.measures = ("bits_per_byte", "minimal_pairs")
    config.minimal_pairs = "blimp/BLiMP.zip"
    config.seeds = 5
    config.notes = (
        "pre-training text is Wikipedia alone; the paper adds BooksCorpus (800 of 3,300 million words)",
        "the vocabulary is learned from the text, with the paper's size",
    )
    return config
