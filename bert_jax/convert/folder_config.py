"""The config.json of a HuggingFace folder: what all architectures share."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from bert_jax.config import ModelConfig
from bert_jax.config.task_options import TRUNCATIONS
from bert_jax.errors import UserError
from bert_jax.json_files import fitted, read_json
from bert_jax.json_forms import Between, OneOf
from bert_jax.model.architectures import ARCHITECTURES, architecture_of
from bert_jax.rows.special_ids import SpecialIds

# The fields about a fine-tuned model's labels, which are copied on export.
_LABEL_FIELDS = ("id2label", "label2id", "problem_type", "classifier_dropout", "finetuning_task")
_OWN_FIELDS = "bert_jax"


class TrainedTexts(TypedDict, total=False):
    """What the training of an exported model read of texts, as in `config.data`."""

    max_seq_length: Annotated[int, Between(3, 1 << 24, "a whole number from 3")]
    truncation: Annotated[str, OneOf(TRUNCATIONS)]


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """The content of a config.json: model config, class, and fields about labels."""

    model: ModelConfig
    huggingface_class: str  # "" if the file names none
    label_fields: dict[str, Any]
    trained_texts: TrainedTexts

    @property
    def labels(self) -> list[str]:
        """Return the label names in the order of their ids; empty if the file has none."""
        names = self.label_fields.get("id2label") or {}
        return [str(names[key]) for key in sorted(names, key=int)]


def read_config(folder: Path) -> FolderConfig:
    """Read a folder's config.json.

    Raises:
      UserError: if its architecture is unknown, or the model computes something that ours does not.
    """
    file = folder / "config.json"
    raw, model_type = read_json(file), check_model_type(folder)
    architecture = ARCHITECTURES[model_type]
    model = architecture.huggingface.read_fields(raw, file)
    huggingface_class = _read_class(raw, known=architecture.huggingface.classes, file=file)
    label_fields = {name: raw[name] for name in _LABEL_FIELDS if raw.get(name) is not None}
    _check_labels(label_fields, file=file)
    return FolderConfig(
        model=model,
        huggingface_class=huggingface_class,
        label_fields=label_fields,
        trained_texts=fitted(raw.get(_OWN_FIELDS) or {}, TrainedTexts, file=file, remedy="fix or remove bert_jax"),
    )


def check_model_type(folder: Path) -> str:
    """Return the architecture that a folder's config.json names.

    Raises:
      UserError: if it is unknown.
    """
    file = folder / "config.json"
    model_type = read_json(file).get("model_type", "bert")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"{file}: model_type is {str(model_type)[:40]!r}: give a folder with a model of type "
            f"{' or '.join(ARCHITECTURES)}"
        )
    return model_type


def _read_class(raw: Mapping[str, Any], *, known: Mapping[str, Any], file: Path) -> str:
    classes = raw.get("architectures") or [""]
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        raise UserError(f"{file}: architectures is {str(classes)[:60]}: write a list with one class name")
    if classes[0] and classes[0] not in known:
        raise UserError(f"{file}: unsupported architecture {classes[0][:60]}: supported are {', '.join(known)}")
    return classes[0]


def own_fields(*, max_seq_length: int, truncation: str) -> dict[str, Any]:
    """Return the fields of config.json that only this package reads; none if the training is unknown."""
    fields = {"max_seq_length": max_seq_length, **({"truncation": truncation} if truncation else {})}
    return {_OWN_FIELDS: fields} if max_seq_length else {}


def _check_labels(fields: Mapping[str, Any], *, file: Path) -> None:
    names = fields.get("id2label", {})
    if not isinstance(names, dict) or not all(isinstance(name, str | int) for name in names.values()):
        raise UserError(f'{file}: id2label must map ids to names: write it as in {{"0": "no", "1": "yes"}}')
    if sorted(names) != sorted(map(str, range(len(names)))):
        raise UserError(
            f'{file}: id2label must map consecutive ids from 0 to names: write it as in {{"0": "no", "1": "yes"}}'
        )


def config_json(
    model: ModelConfig,
    *,
    huggingface_class: str,
    dtype: str,
    special_ids: SpecialIds,
    label_fields: Mapping[str, Any] | None = None,
    other_fields: Mapping[str, Any] | None = None,
) -> str:
    """Return the config.json of an exported folder. `other_fields` are for programs other than transformers.

    Raises:
      UserError: if HuggingFace's classes cannot express this model.
    """
    architecture = architecture_of(model)
    fields = {
        "architectures": [huggingface_class],
        "model_type": architecture.name,
        **architecture.huggingface.write_fields(model),
        **{field: getattr(special_ids, name) for field, name in architecture.huggingface.special_ids.items()},
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
        **(label_fields or {}),
        **(other_fields or {}),
    }
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
