"""BERT's config.json in HuggingFace folders, and the fields of `ModelConfig` that determine what BERT computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.model.huggingface_fields import (
    check_fixed,
    check_heads,
    read_activation,
    read_flag,
    read_fraction,
    read_size,
)

# Fields of the same name and meaning on both sides.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
SHAPE_FIELDS = (*_SIZES, "hidden_act", "layer_norm_eps", "attention_direction")
# HuggingFace's defaults; other values change the arithmetic.
_FIXED = {
    "position_embedding_type": "absolute",
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
}


def read_fields(fields: Mapping[str, Any], file: Path) -> ModelConfig:
    """Return the model config for the fields of `file`, in float32.

    Raises:
      UserError: naming file and field, if a value is missing, has the wrong type, is impossible or not supported.
    """
    check_fixed(fields, _FIXED, file=file)
    values: dict[str, Any] = {
        name: read_size(fields, name, file=file, default=2 if name == "type_vocab_size" else None) for name in _SIZES
    }
    for name in _FRACTIONS:
        values[name] = read_fraction(fields, name, file=file, default=getattr(ModelConfig, name))
    check_heads(values, file=file)
    # BertModel's attention is causal if it is a decoder; without cross-attention nothing else changes.
    direction = "left_to_right" if read_flag(fields, "is_decoder", file=file) else "bidirectional"
    activation = read_activation(fields, "hidden_act", file=file)
    return ModelConfig(
        **values, architecture="bert", hidden_act=activation, attention_direction=direction, dtype="float32"
    )


def write_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config.json."""
    return {
        **{name: getattr(model, name) for name in (*_SIZES, *_FRACTIONS)},
        "hidden_act": model.hidden_act,  # gelu and gelu_new mean the same on both sides
        "position_embedding_type": "absolute",
        "use_cache": True,
        **({"is_decoder": True} if model.attention_direction == "left_to_right" else {}),
    }
