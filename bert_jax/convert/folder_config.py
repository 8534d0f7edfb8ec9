"""Read and write the config.json of a HuggingFace folder: what is the same for every architecture."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.files import read_json
from bert_jax.model.architectures import ARCHITECTURES, architecture_of

# What a fine-tuned folder says of its labels, carried from one folder to the next.
_LABEL_FIELDS = ("id2label", "label2id", "problem_type", "classifier_dropout", "finetuning_task")


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """What a config.json says: the shape, the class it was saved from, the fields about labels."""

    model: ModelConfig
    huggingface_class: str  # "" where the file does not say
    label_fields: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """Return the names of the labels in the order of their numbers; empty where none are given."""
        names = self.label_fields.get("id2label") or {}
        return [str(names[key]) for key in sorted(names, key=int)]


def read_config(folder: Path) -> FolderConfig:
    """Read a folder's config.json.

    Raises:
      UserError: if it is of no architecture of ours, or of a model that computes something else.
    """
    file = folder / "config.json"
    raw = read_json(file)
    model_type = raw.get("model_type", "bert")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"{file}: model_type is {str(model_type)[:40]!r}: only {', '.join(ARCHITECTURES)} is read; name a folder "
            "of a BERT model"
        )
    architecture = ARCHITECTURES[model_type]
    model = architecture.huggingface.read_fields(raw, file)
    huggingface_class = _read_class(raw, known=architecture.huggingface.classes, file=file)
    label_fields = {name: raw[name] for name in _LABEL_FIELDS if raw.get(name) is not None}
    _check_labels(label_fields, file=file)
    return FolderConfig(model=model, huggingface_class=huggingface_class, label_fields=label_fields)


def _read_class(raw: Mapping[str, Any], *, known: Mapping[str, Any], file: Path) -> str:
    classes = raw.get("architectures") or [""]
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        raise UserError(f"{file}: architectures is {str(classes)[:60]}: write a list of one class name")
    if classes[0] and classes[0] not in known:
        raise UserError(f"{file}: architecture {classes[0][:60]} is not read; these are: {', '.join(known)}")
    return classes[0]


def _check_labels(fields: Mapping[str, Any], *, file: Path) -> None:
    names = fields.get("id2label", {})
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        raise UserError(
            f'{file}: id2label must name every label by its number from 0 on, as in {{"0": "no", "1": "yes"}}'
        )


def config_json(
    model: ModelConfig,
    *,
    huggingface_class: str,
    dtype: str,
    pad_id: int,
    label_fields: Mapping[str, Any] | None = None,
) -> str:
    """Return the config.json of an exported folder.

    Raises:
      UserError: if HuggingFace's classes do not compute what this model does.
    """
    architecture = architecture_of(model)
    fields = {
        "architectures": [huggingface_class],
        "model_type": architecture.name,
        **architecture.huggingface.write_fields(model),
        "pad_token_id": pad_id,
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before version 5 calls it
        **(label_fields or {}),
    }
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
