"""The import path of `default_config` in users' config files. It is defined in `bert_jax.config.finetuning`."""

from bert_jax.config.finetuning import default_config as default_config
