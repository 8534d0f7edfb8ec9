"""Custom data: JSON lines or an array, or CSV or TSV with a header line; flags name the columns.

    python -m bert_jax.finetune --config=configs/finetune_own.py:classification --init=MODEL --data_dir=D --workdir=W

The folder contains train and dev (or validation) as .jsonl, .json, .csv or .tsv; `--config.own.text=review
--config.own.label=stars` names columns. The argument is the kind: classification, regression, tags, span, choice or
multilabel (a list of labels per text; in a table, labels separated by commas, or columns of 0 and 1). Without a dev
file, hold out part of train: `--config.data.dev_fraction=0.1`.
Cost and results depend on the data.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config(kind: str = "classification") -> ConfigDict:
    """Return the config of a kind of task."""
    config = default_config(task="own")
    config.own.kind = kind
    if kind == "span":
        config.data.max_seq_length = 384
        config.own.text, config.own.text_pair, config.own.label = "question", "context", "answer"
    elif kind == "tags":
        config.own.text, config.own.label = "words", "tags"
    elif kind == "choice":
        config.own.choices = "choices"
    return config
