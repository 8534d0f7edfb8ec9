"""What an embedder takes over from the model that it starts from, and what of that model cannot be trained."""

import dataclasses

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError

_POOLINGS = ("mean", "cls")


def with_model_settings(config: FinetuneConfig, *, pretrained: PretrainedModel) -> FinetuneConfig:
    """Return the config of an embedder with the pooling of `pretrained`, if it leaves that open; other configs as is.

    Raises:
      UserError: if the embeddings of `pretrained` need what is not trained here, or have no size in the config.
    """
    embed, settings = config.embed, pretrained.embedding
    if embed is None:
        return config
    size = pretrained.model.hidden_size
    for number in embed.dimensions:
        if number >= size:
            raise UserError(
                f"config.embed.dimensions={embed.dimensions}: the embeddings of {pretrained.path} have {size} numbers, "
                "and the whole is always trained: give smaller sizes"
            )
    if settings is None or embed.pooling:
        return config if embed.pooling else _with_pooling(config, "mean")
    pooling = "+".join(settings.poolings)
    problem = settings.unsupported or ("dense layers" if settings.layers else "")
    problem = problem or ("lower-casing before the tokenizer" if settings.lowercase else "")
    problem = problem or (f"the pooling {pooling}" if pooling not in _POOLINGS else "")
    if problem:
        raise UserError(
            f"--init={pretrained.path}: its embeddings need {problem}, which is not trained here: type "
            "--config.embed.pooling=mean to train its encoder without it"
        )
    return _with_pooling(config, pooling)


def unused_prompts(config: FinetuneConfig, *, pretrained: PretrainedModel) -> str:
    """Return a line about the model's prompts if the config has none; "" if there is nothing to say."""
    embed, settings = config.embed, pretrained.embedding
    if embed is None or settings is None or embed.anchor_prompt or embed.positive_prompt:
        return ""
    prompts = [prompt for prompt in (settings.prompt, *settings.prompts.values()) if prompt]
    if not prompts:
        return ""
    texts = ", ".join(repr(prompt[:40]) for prompt in dict.fromkeys(prompts))
    return (
        f"the prompts of --init={pretrained.path} ({texts}) are not used: to keep them, type "
        "--config.embed.anchor_prompt and --config.embed.positive_prompt"
    )


def _with_pooling(config: FinetuneConfig, pooling: str) -> FinetuneConfig:
    assert config.embed is not None
    return dataclasses.replace(config, embed=dataclasses.replace(config.embed, pooling=pooling))
