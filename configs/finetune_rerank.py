"""A reranker (cross-encoder) from the scores of a teacher: a number for each pair of query and document.

    python -m bert_jax.finetune --config=configs/finetune_rerank.py:margin_mse --init=MODEL --data_dir=DIR --workdir=DIR

The argument is the loss: margin_mse or kl. The folder contains train and dev as .jsonl, .json, .csv, .tsv or .parquet,
a query per record: {"query": "...", "documents": ["...", "..."], "scores": [9.1, 2.5]}; in a table,
`--config.rerank.documents=positive,negative --config.rerank.scores=positive_score,negative_score` names columns.
`export --cross_encoder` writes it for sentence-transformers. For pairs with labels of their own, without a teacher:
configs/finetune_own.py:regression or :classification with `--config.own.text_pair`.
Cost and results depend on the data.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config(loss: str = "margin_mse") -> ConfigDict:
    """Return the config for a loss."""
    config = default_config(task="rerank")
    config.rerank.loss = loss
    config.optimizer.learning_rate = 2e-5
    config.train.batch_size = 16
    config.train.num_epochs = 1.0
    config.train.evals_per_epoch = 4
    return config
