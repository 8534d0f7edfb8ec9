"""Begin from a SOURCE: its encoder, its pooler if it has one, and its head where it is of the same task."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.source import Source
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.task_heads import HEAD_PARAMETERS
from bert_jax.tasks.interface import Task

# The ends of the HuggingFace classes' names.
HUGGINGFACE_USES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "choice": "ForMultipleChoice",
}


def task_model(source: Source, *, config: FinetuneConfig) -> ModelConfig:
    """Return the SOURCE's shape, computed as the config says.

    Raises:
      UserError: if rows can be longer than its position table.
    """
    ours = config.model
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    changes: dict[str, Any] = {
        "dtype": auto if ours.dtype == "auto" else ours.dtype,
        "scan_layers": ours.scan_layers,
        "remat": ours.remat,
    }
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if getattr(ours, name) >= 0:
            changes[name] = getattr(ours, name)
    if config.data.max_seq_length > source.model.max_position_embeddings:
        raise UserError(
            f"config.data.max_seq_length={config.data.max_seq_length} is longer than the position table of "
            f"{source.path}: set it to at most {source.model.max_position_embeddings}"
        )
    return dataclasses.replace(source.model, **changes)


def source_params(source: Source, *, task: Task, parts: tuple[str, ...], fresh: tuple[str, ...]) -> dict[str, Any]:
    """Return those of `parts` that the SOURCE gives; the rest is to be drawn.

    A head is taken over from a SOURCE fine-tuned for the same kind of task (intermediate training); parts named in
    `fresh` are always drawn.

    Raises:
      UserError: if the SOURCE's head has other labels than the task; the line shows both; if `fresh` names no part.
    """
    head = HEAD_PARAMETERS[task.kind]
    for name in fresh:
        if name not in parts:
            raise UserError(f"--init_missing={name}: {task.name} has no such part; its parts are {', '.join(parts)}")
    taken = {part: source.params[part] for part in parts if part in source.params and part not in fresh}
    if head not in taken:
        return taken
    if source.architecture != _class_for(task, model=source.model):
        del taken[head]
        return taken
    if task.kind in ("classification", "regression", "tags"):
        _check_labels(source, task, head=head)
    return taken


def _class_for(task: Task, *, model: ModelConfig) -> str:
    return architecture_of(model).huggingface.class_for(HUGGINGFACE_USES[task.kind])


def _check_labels(source: Source, task: Task, *, head: str) -> None:
    wanted = len(task.labels) or 1
    named = "id2label" in source.label_fields
    theirs = source.labels if named else [f"{source.num_labels} labels without names"]
    same = source.num_labels == wanted and (not named or not task.labels or source.labels == list(task.labels))
    if not same:
        raise UserError(
            f"--init={source.path} has a head for the labels {', '.join(theirs)}, {task.name} has "
            f"{', '.join(task.labels) or 'one number'}: type --init_missing={head} to begin with a fresh head"
        )


def checkpoint_metadata(source: Source, *, task: Task, model: ModelConfig, config: FinetuneConfig) -> dict[str, Any]:
    """Return what a checkpoint must say to be a SOURCE (`convert/workdir.py`)."""
    return {
        "config": {**dataclasses.asdict(config), "model": dataclasses.asdict(model)},
        "architecture": _class_for(task, model=model),
        "labels": list(task.labels),
        "task": task.name,
        "kind": task.kind,
        "fingerprints": {"vocabulary": source.require_tokenizer().fingerprint},
        "source": str(source.path),
    }


def constant_score(task: Task, split: Any) -> float:
    """Return the selection figure of a model that has learned nothing: always one class, no entity, one ending.

    A run that ends no better has collapsed (Mosbach et al. 2021). A regression has collapsed below a correlation of
    0.1, for a constant has none at all.
    """
    features = split.features
    if task.kind == "regression":
        return 0.1
    if task.kind == "choice":
        return 1.0 / features.group
    if task.kind == "classification":
        count = len(task.labels)
        outputs = [[np.eye(count, dtype=np.float32)[c]] * features.num_examples for c in range(count)]
    elif task.kind == "tags":
        empty = np.eye(len(task.labels), dtype=np.float32)[:1]
        outputs = [[np.repeat(empty, len(ids), axis=0) for ids in features.ids]]
    else:
        outputs = [[np.zeros((len(ids), 2), np.float32) for ids in features.ids]]
    return max(task.score(split, some)[task.selection] for some in outputs)
