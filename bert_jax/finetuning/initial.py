"""Begin from a SOURCE: its encoder, its pooler if it has one, and its head where it is of the same task."""

import dataclasses
from typing import Any

import jax

from bert_jax.config import ModelConfig
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.tasks.interface import Outputs, Split, Task


def task_model(source: PretrainedModel, *, config: FinetuneConfig) -> ModelConfig:
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


def source_params(
    source: PretrainedModel, *, task: Task, parts: tuple[str, ...], fresh: tuple[str, ...]
) -> dict[str, Any]:
    """Return those of `parts` that the SOURCE gives; the rest is to be drawn.

    A head is taken over from a SOURCE fine-tuned for the same kind of task (intermediate training); parts named in
    `fresh` are always drawn.

    Raises:
      UserError: if the SOURCE's head has other labels than the task; the line shows both; if `fresh` names no part.
    """
    head = task.kind.head
    for name in fresh:
        if name not in parts:
            raise UserError(f"--init_missing={name}: {task.name} has no such part; its parts are {', '.join(parts)}")
    taken = {part: source.params[part] for part in parts if part in source.params and part not in fresh}
    if head not in taken:
        return taken
    if source.architecture != _class_for(task, model=source.model):
        del taken[head]
        return taken
    if task.kind.has_label_names:
        _check_labels(source, task, head=head)
    return taken


def _class_for(task: Task, *, model: ModelConfig) -> str:
    return architecture_of(model).huggingface.class_for(task.kind.huggingface_class)


def _check_labels(source: PretrainedModel, task: Task, *, head: str) -> None:
    wanted = len(task.labels) or 1
    named = "id2label" in source.label_fields
    theirs = source.labels if named else [f"{source.num_labels} labels without names"]
    same = source.num_labels == wanted and (not named or not task.labels or source.labels == list(task.labels))
    if not same:
        raise UserError(
            f"--init={source.path} has a head for the labels {', '.join(theirs)}, {task.name} has "
            f"{', '.join(task.labels) or 'one number'}: type --init_missing={head} to begin with a fresh head"
        )
    if source.output_kind is not task.kind:
        theirs_kind = source.output_kind.name if source.output_kind else "another"
        raise UserError(
            f"--init={source.path} has a head for {theirs_kind}, {task.name} is {task.kind.name}: type "
            f"--init_missing={head} to begin with a fresh head"
        )


def checkpoint_metadata(
    source: PretrainedModel, *, task: Task, model: ModelConfig, config: FinetuneConfig
) -> dict[str, Any]:
    """Return what a checkpoint must say to be a SOURCE (`convert/workdir.py`)."""
    return {
        "config": {**dataclasses.asdict(config), "model": dataclasses.asdict(model)},
        "architecture": _class_for(task, model=model),
        "labels": list(task.labels),
        "task": task.name,
        "kind": task.kind.name,
        "fingerprints": {"vocabulary": source.require_tokenizer().fingerprint},
        "source": str(source.path),
    }


def constant_score(task: Task, split: Split) -> float:
    """Return the selection metric of a model that has learned nothing: always one class, no entity, one ending.

    A run that ends no better has collapsed (Mosbach et al. 2021).
    """
    features = split.features
    kind = task.kind(num_labels=len(task.labels), group=features.group)

    def score(outputs: Outputs) -> float:
        return task.score(split, outputs)[task.selection]

    return kind.baseline(score, lengths=[len(ids) for ids in features.ids], targets=features.targets or ())
