"""Text embeddings, trained on pairs, triplets, scored pairs or texts alone with the losses of sentence-transformers.

    python -m bert_jax.finetune --config=configs/finetune_embed.py:pairs --init=MODEL --data_dir=DIR --workdir=DIR

The argument is the form of the records of train: pairs, triplets, scores or texts. The folder contains train and dev
as .jsonl, .json, .csv, .tsv or .parquet; `--config.embed.anchor=question --config.embed.positive=answer` names columns.

* pairs {"anchor", "positive"}: InfoNCE with all other positives of the global batch as negatives.
* triplets: the same with "negative", a hard negative or a list of them.
* scores {"anchor", "positive", "score"}: CoSENT.
* texts {"anchor"}, or train.txt with a text per line: SimCSE, each text with itself under another dropout.

A dev set with scores is scored by Spearman's correlation, others by retrieval (nDCG@10). Pairs do better with a larger
batch: `--config.train.gradient_accumulation_steps=8` keeps all its negatives (GradCache) where memory is short.
Cost and results depend on the data.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config(form: str = "pairs") -> ConfigDict:
    """Return the config for a form of the train set."""
    config = default_config(task="embed")
    config.embed.form = form
    config.optimizer.learning_rate = 2e-5
    config.train.batch_size = 16 if form == "scores" else 128
    config.train.num_epochs = 1.0
    config.train.evals_per_epoch = 4
    return config
