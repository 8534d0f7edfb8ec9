"""The name under which config files of users import the defaults of fine-tuning; they are in `bert_jax.config`."""

from bert_jax.config.finetuning import default_config as default_config
