"""Translate between HuggingFace's config.json and `ModelConfig`, and refuse what no BERT of ours computes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.files import read_json
from bert_jax.model.bert.names import ARCHITECTURES

# Fields of the same name and meaning on both sides.
_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_FLOATS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
SHAPE_FIELDS = (*_INTEGERS, "hidden_act", "layer_norm_eps", "attention_direction")
_LARGEST = 1 << 24  # of any size: a lying config.json is refused before anything is allocated
# HuggingFace's "gelu" is the erf form, the two others are the tanh form of the original.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
}
# What changes the arithmetic and must have this value, HuggingFace's default.
_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
}
# What a fine-tuned folder says of its labels, carried from one folder to the next.
_LABEL_FIELDS = ("id2label", "label2id", "problem_type", "classifier_dropout", "finetuning_task")


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Hold what a config.json says: the shape, the classes it was saved from, the fields about labels."""

    model: ModelConfig
    architecture: str  # "" where the file does not say
    label_fields: dict[str, Any]
    dtype: str  # "" where the file does not say

    @property
    def labels(self) -> list[str]:
        """Return the names of the labels in the order of their numbers; empty where none are given."""
        names = self.label_fields.get("id2label") or {}
        return [str(names[key]) for key in sorted(names, key=int)]


def parse_model(raw: Mapping[str, Any], *, file: Path, activations: Mapping[str, str] = _ACTIVATIONS) -> ModelConfig:
    """Return the shape that a BERT config file describes, to be computed in float32.

    Raises:
      UserError: naming file and field, where a value is missing, of another type, or impossible.
    """
    values: dict[str, Any] = {}
    for name in _INTEGERS:
        value = raw.get(name, 2 if name == "type_vocab_size" else None)
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise UserError(f"{file}: {name} is {value!r}: write a whole number from 1 to {_LARGEST}")
        values[name] = value
    for name in _FLOATS:
        value = raw.get(name, getattr(ModelConfig, name))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"{file}: {name} is {value!r}: write a number from 0 to 1")
        values[name] = float(value)
    if values["hidden_size"] % values["num_attention_heads"]:
        raise UserError(
            f"{file}: num_attention_heads={values['num_attention_heads']} does not divide "
            f"hidden_size={values['hidden_size']}: restore the file"
        )
    activation = raw.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in activations:
        raise UserError(f"{file}: hidden_act is {activation!r}: these are computed: {', '.join(activations)}")
    return ModelConfig(**values, hidden_act=activations[activation], dtype="float32")


def read_config(folder: Path) -> FolderConfig:
    """Read a HuggingFace folder's config.json.

    Raises:
      UserError: if it is no BERT, or one that computes something else.
    """
    file = folder / "config.json"
    raw = read_json(file)
    model_type = raw.get("model_type", "bert")
    if model_type != "bert":
        raise UserError(
            f"{file}: model_type is {str(model_type)[:40]!r}: only bert is read; name a folder of a BERT model"
        )
    for name, value in _FIXED.items():
        if raw.get(name, value) != value:
            raise UserError(f"{file}: {name} is {str(raw[name])[:40]!r}: only {value!r} is read; name another model")
    architectures = raw.get("architectures") or [""]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise UserError(f"{file}: architectures is {str(architectures)[:60]}: write a list of one class name")
    architecture = architectures[0]
    if architecture and architecture not in ARCHITECTURES:
        raise UserError(f"{file}: architecture {architecture[:60]} is not read; these are: {', '.join(ARCHITECTURES)}")
    label_fields = {name: raw[name] for name in _LABEL_FIELDS if raw.get(name) is not None}
    _check_labels(label_fields, file=file)
    dtype = raw.get("dtype", raw.get("torch_dtype")) or ""
    return FolderConfig(
        model=parse_model(raw, file=file), architecture=architecture, label_fields=label_fields, dtype=str(dtype)
    )


def _check_labels(fields: Mapping[str, Any], *, file: Path) -> None:
    names = fields.get("id2label", {})
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        raise UserError(
            f'{file}: id2label must name every label by its number from 0 on, as in {{"0": "no", "1": "yes"}}'
        )


def to_json(
    model: ModelConfig, *, architecture: str, dtype: str, pad_id: int, label_fields: Mapping[str, Any] | None = None
) -> str:
    """Return the config.json of an exported folder.

    Raises:
      UserError: if HuggingFace's BERT does not compute what this model does.
    """
    if model.attention_direction != "bidirectional":
        raise UserError(
            f"model.attention_direction={model.attention_direction} cannot be exported: HuggingFace's BERT encoder "
            f"looks both "
            "ways; train with attention_direction=bidirectional"
        )
    fields = {
        "architectures": [architecture],
        "model_type": "bert",
        **{name: getattr(model, name) for name in (*_INTEGERS, *_FLOATS)},
        "hidden_act": model.hidden_act,  # gelu and gelu_new mean the same on both sides
        "pad_token_id": pad_id,
        "position_embedding_type": "absolute",
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before version 5 calls it
        **(label_fields or {}),
    }
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
