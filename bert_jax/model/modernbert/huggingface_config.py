"""ModernBERT's config.json in HuggingFace folders, and the fields of `ModelConfig` that determine what it computes.

Written are the keys of transformers 4.48, which 5.x reads too; read are also those that 5.x writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.huggingface_fields import (
    check_fixed,
    check_heads,
    read_activation,
    read_fraction,
    read_number,
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
    "local_attention",
)
_OWN = ("global_attn_every_n_layers", "local_attention", "global_rope_theta", "local_rope_theta", "classifier_pooling")
SHAPE_FIELDS = (*_SIZES[:-1], "hidden_act", "layer_norm_eps", "attention_direction", *_OWN)
# HuggingFace's defaults; other values change the arithmetic.
_FIXED = {
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "classifier_bias": False,
    "tie_word_embeddings": True,
    "rope_scaling": None,
}
_DEFAULTS = {"local_attention": 128, "max_position_embeddings": 8192}
_KINDS = {"full_attention": "global", "sliding_attention": "local"}  # transformers 5's names, ours
_THETAS = {"global": 160_000.0, "local": 10_000.0}
SPECIAL_IDS = {
    "pad_token_id": "pad_id",
    "cls_token_id": "cls_id",
    "bos_token_id": "cls_id",
    "sep_token_id": "sep_id",
    "eos_token_id": "sep_id",
}


def read_fields(fields: Mapping[str, Any], file: Path) -> ModelConfig:
    """Return the model config for the fields of `file`, in float32.

    Raises:
      UserError: naming file and field, if a value is missing, has the wrong type, is impossible or not supported.
    """
    check_fixed(fields, _FIXED, file=file)
    values: dict[str, Any] = {name: read_size(fields, name, file=file, default=_DEFAULTS.get(name)) for name in _SIZES}
    check_heads(values, file=file)
    activation = read_activation(fields, "hidden_activation", file=file)
    if read_activation(fields, "classifier_activation", file=file) != activation:
        raise UserError(
            f"{file}: classifier_activation is {fields['classifier_activation']!r}: only that of hidden_activation "
            "is supported; name another model"
        )
    pooling = fields.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UserError(f"{file}: classifier_pooling is {str(pooling)[:40]!r}: write cls or mean")
    values |= _thetas(fields, file=file)
    return ModelConfig(
        **values,
        architecture="modernbert",
        hidden_act=activation,
        layer_norm_eps=read_fraction(fields, "norm_eps", file=file, default=1e-5),
        initializer_range=read_fraction(fields, "initializer_range", file=file, default=0.02),
        hidden_dropout_prob=read_fraction(fields, "mlp_dropout", file=file, default=0.0),
        attention_probs_dropout_prob=read_fraction(fields, "attention_dropout", file=file, default=0.0),
        global_attn_every_n_layers=_period(fields, layers=values["num_hidden_layers"], file=file),
        classifier_pooling=pooling,
        dtype="float32",
    )


def _period(fields: Mapping[str, Any], *, layers: int, file: Path) -> int:
    """Return the distance between layers with global attention."""
    kinds = fields.get("layer_types")
    if kinds is None:
        return read_size(fields, "global_attn_every_n_layers", file=file, default=3)
    kinds = kinds if isinstance(kinds, list) else []
    whole = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    # With a single global layer every distance that is long enough means the same.
    single = read_size(fields, "global_attn_every_n_layers", file=file, default=layers)
    period = whole[1] if len(whole) > 1 else single
    if kinds != ["sliding_attention" if index % period else "full_attention" for index in range(layers)]:
        raise UserError(
            f"{file}: layer_types must have full_attention in every n-th of {layers} layers from the first on and "
            "sliding_attention in the others: restore the file, or name another model"
        )
    return period


def _thetas(fields: Mapping[str, Any], *, file: Path) -> dict[str, float]:
    """Return the bases of the rotary positions. In transformers 4, a local one of null is the global one."""
    parameters = fields.get("rope_parameters")
    if parameters is None:
        thetas = dict(_THETAS)
        for kind in thetas:
            if fields.get(f"{kind}_rope_theta", 0) is None:
                thetas[kind] = thetas["global"]
            else:
                thetas[kind] = read_number(fields, f"{kind}_rope_theta", file=file, default=thetas[kind])
        return {f"{kind}_rope_theta": theta for kind, theta in thetas.items()}
    thetas = {}
    for name, kind in _KINDS.items():
        of_kind = parameters.get(name) if isinstance(parameters, Mapping) else None
        of_kind = {} if of_kind is None else of_kind
        if not isinstance(of_kind, Mapping) or of_kind.get("rope_type", "default") != "default":
            raise UserError(
                f"{file}: rope_parameters.{name} is {str(of_kind)[:60]!r}: only the rope_type default is supported; "
                "name another model"
            )
        thetas[f"{kind}_rope_theta"] = read_number(of_kind, "rope_theta", file=file, default=_THETAS[kind])
    return thetas


def write_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config.json.

    Raises:
      UserError: if HuggingFace's ModernBERT cannot compute this model.
    """
    if model.attention_direction != "bidirectional":
        raise UserError(
            f"model.attention_direction={model.attention_direction} cannot be exported: HuggingFace's ModernBERT "
            "encoder is bidirectional; train with --config.model.attention_direction=bidirectional, or export a "
            "checkpoint after the causal phases"
        )
    return {
        **{name: getattr(model, name) for name in (*_SIZES, *_OWN, "initializer_range")},
        **_FIXED,
        "hidden_activation": model.hidden_act,
        "classifier_activation": model.hidden_act,
        "norm_eps": model.layer_norm_eps,
        "initializer_cutoff_factor": 2.0,
        "attention_dropout": model.attention_probs_dropout_prob,
        "embedding_dropout": model.hidden_dropout_prob,
        "mlp_dropout": model.hidden_dropout_prob,
    }
