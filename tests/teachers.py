"""Make teachers: random encoders, and folders with a whole model of a vocabulary."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from bert_jax.config import ModelConfig
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.tokenization import Tokenizer
from bert_jax.model.architectures import architecture_of
from bert_jax.pretrain.evaluation_program import init_params


@functools.cache
def random_model(model: ModelConfig, *, seed: int = 9) -> dict[str, Any]:
    """Return random parameters of an encoder and its pre-training heads, on the host."""
    params = jax.jit(lambda: nn.meta.unbox(init_params(model, key=jax.random.key(seed))))()
    return jax.tree.map(np.asarray, jax.device_get(params))


def random_encoder(model: ModelConfig) -> Any:
    """Return random parameters of an encoder alone."""
    return random_model(model)["encoder"]


def write_teacher(folder: Path, *, tokenizer: Tokenizer, seed: int = 9, **changes: Any) -> Path:
    """Write a random teacher of three layers of width 64 as a HuggingFace folder."""
    model = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        dtype="float32",
        initializer_range=0.2,
    )
    model = dataclasses.replace(model, **changes)
    described = architecture_of(model).huggingface
    source = PretrainedModel(
        path=folder,
        kind="huggingface",
        model=model,
        architecture=described.class_for(described.pretraining_class),
        params=random_model(model, seed=seed),
        dtype="float32",
        tokenizer=tokenizer,
    )
    export_folder(source, out=folder, report=lambda line: None)
    return folder
