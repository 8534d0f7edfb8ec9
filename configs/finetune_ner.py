"""CoNLL-2003 named entity recognition (paper section 5.3): fine-tuning, or feature-based (Table 7).

    python -m bert_jax.finetune --config=configs/finetune_ner.py --init=MODEL --data_dir=DIR --workdir=DIR --seeds=5
    python -m bert_jax.finetune --config=configs/finetune_ner.py:concat_last_four --init=MODEL ...

The argument is empty (fine-tuning), or a row of Table 7: embeddings, second_to_last, last, sum_last_four,
concat_last_four, sum_all. The paper uses a cased model and the whole document as context. Cost and results: planned.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import default_config


def get_config(features: str = "") -> ConfigDict:
    """Return the config."""
    config = default_config(task="ner")
    config.data.max_seq_length = 512  # for documents; 128 suffices for sentences (--config.ner.document_context=false)
    config.train.num_epochs = 3.0
    config.train.batch_size = 8  # sequences, each from one document: about a hundred sentences
    config.optimizer.learning_rate = 5e-5
    config.sweep.batch_size = (8,)
    config.ner.features = features
    if features:
        config.optimizer.learning_rate = 1e-3  # a BiLSTM trained from scratch; the paper gives no value
        config.train.num_epochs = 20.0
        config.train.batch_size = 32  # sentences
        config.sweep.batch_size = (32,)
        config.sweep.learning_rate = (1e-3, 5e-4)
        config.sweep.num_epochs = (20.0,)
    return config
