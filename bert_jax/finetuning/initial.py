"""Initialization from a pretrained model: encoder, pooler if it has one, and head if it is for the same task."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax

from bert_jax.config import ModelConfig, TaskModelConfig
from bert_jax.config.finetuning import FinetuneConfig, FinetuneOptimizerConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.kinds.base import Baseline, OutputKind
from bert_jax.model.architectures import architecture_of
from bert_jax.model.bilstm import BILSTM
from bert_jax.tasks.interface import Outputs, Split, Task, merged

# A width up to which 3e-4 is a better start than 3e-5: that of BERT-Mini, whose encoder has 3 million parameters. Turc
# et al. (2019) found the best rates of their small models, from 128 wide, among 3e-5, 5e-5, 1e-4 and 3e-4.
_SMALL_WIDTH = 256


def task_model(pretrained: PretrainedModel, *, config: FinetuneConfig) -> TaskModelConfig:
    """Return the config of the pretrained model with the `model` options of the fine-tuning config.

    Raises:
      UserError: if instances may be longer than the model's position embeddings, or a BiLSTM does not fit its width.
    """
    options = config.model
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    changes: dict[str, Any] = {
        "dtype": auto if options.dtype == "auto" else options.dtype,
        "scan_layers": options.scan_layers,
        "remat": options.remat,
        "bilstm_layers": options.bilstm_layers,
        "frozen_encoder": options.frozen_encoder,
    }
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if getattr(options, name) >= 0:
            changes[name] = getattr(options, name)
    if config.data.max_seq_length > pretrained.model.max_position_embeddings:
        raise UserError(
            f"config.data.max_seq_length={config.data.max_seq_length} exceeds the position embeddings of "
            f"{pretrained.path}: set it to at most {pretrained.model.max_position_embeddings}"
        )
    if options.bilstm_layers and pretrained.model.hidden_size % 2:
        raise UserError(
            f"config.model.bilstm_layers={options.bilstm_layers}: the width {pretrained.model.hidden_size} of "
            f"{pretrained.path} is not even, so its two directions cannot have half of it each: set it to 0"
        )
    saved = len(pretrained.params.get(BILSTM, ())) // 2  # directions
    if saved not in (0, options.bilstm_layers):
        raise UserError(
            f"config.model.bilstm_layers={options.bilstm_layers}: {pretrained.path} was fine-tuned with a BiLSTM of "
            f"{saved} layers: set --config.model.bilstm_layers={saved}, or leave it out with --drop={BILSTM},classifier"
        )
    fields = {field.name: getattr(pretrained.model, field.name) for field in dataclasses.fields(ModelConfig)}
    return TaskModelConfig(**{**fields, **changes})


def pretrained_params(
    pretrained: PretrainedModel, *, task: Task, parts: tuple[str, ...], random_parts: tuple[str, ...]
) -> dict[str, Any]:
    """Return the `parts` that come from the pretrained model. The others are to be initialized randomly.

    The head is used if the model was fine-tuned for the same kind of task (intermediate training). `random_parts` are
    never used, nor are parts that pre-training did not train.

    Raises:
      UserError: if the model's head has other labels than the task, or `random_parts` names an unknown part.
    """
    head = task.kind.head
    for name in random_parts:
        if name.partition("/")[0] not in (*parts, *pretrained.parts):
            raise UserError(f"--init_missing={name}: {task.name} has no such part; its parts are {', '.join(parts)}")
    random = (*random_parts, *pretrained.untrained)
    params = {part: pretrained.params[part] for part in parts if part in pretrained.params and part not in random}
    if head not in params:
        return params
    if pretrained.architecture != _class_for(task, model=pretrained.model):
        del params[head]
        return params
    if task.kind.has_label_names:
        _check_labels(pretrained, task, head=head)
    return params


def _class_for(task: Task, *, model: ModelConfig) -> str:
    return architecture_of(model).huggingface.class_for(task.kind.huggingface_class)


def _check_labels(pretrained: PretrainedModel, task: Task, *, head: str) -> None:
    expected = len(task.labels) or 1
    has_names = "id2label" in pretrained.label_fields
    labels = pretrained.labels if has_names else [f"{pretrained.num_labels} labels without names"]
    same_names = not has_names or not task.labels or pretrained.labels == list(task.labels)
    if pretrained.num_labels != expected or not same_names:
        raise UserError(
            f"--init={pretrained.path} has a head for the labels {', '.join(labels)}, {task.name} has "
            f"{', '.join(task.labels) or 'one number'}: type --init_missing={head} for a randomly initialized head"
        )
    if not is_same_head(pretrained.output_kind, task.kind):
        kind = pretrained.output_kind.name if pretrained.output_kind else "another kind"
        raise UserError(
            f"--init={pretrained.path} has a head for {kind}, {task.name} is {task.kind.name}: type "
            f"--init_missing={head} for a randomly initialized head"
        )


def is_same_head(first: type[OutputKind] | None, second: type[OutputKind]) -> bool:
    """Return whether two kinds have the same head in HuggingFace's folders, as a ranking and a regression do."""
    return first is not None and all(
        getattr(first, name) == getattr(second, name) for name in ("huggingface_class", "problem_type")
    )


def checkpoint_metadata(
    pretrained: PretrainedModel, *, task: Task, model: ModelConfig, config: FinetuneConfig
) -> dict[str, Any]:
    """Return the metadata of a checkpoint that `convert/workdir.py` needs to load it as a model."""
    return {
        "config": {**dataclasses.asdict(config), "model": dataclasses.asdict(model)},
        "architecture": _class_for(task, model=model),
        "labels": list(task.labels),
        "task": task.name,
        "kind": task.kind.name,
        **task.model_record(),
        "fingerprints": {"vocabulary": pretrained.require_tokenizer().fingerprint},
        "source": str(pretrained.path),
    }


def find_baseline(task: Task, split: Split) -> Baseline:
    """Return a model that has learned nothing, such as the majority class, with its selection metric (see the kinds).

    A run whose last evaluation is not better has collapsed (Mosbach et al. 2021).
    """
    features = split.features
    return task.make_kind(group=features.group).baseline(
        _selection_score(task, split),
        lengths=[len(ids) for ids in features.ids],
        targets=features.targets or (),
        labels=task.labels,
    )


def _selection_score(task: Task, split: Split) -> Callable[[Outputs], float]:
    def score(outputs: Outputs) -> float:
        return task.score(split, merged(split.features, outputs))[task.selection]

    return score


def small_model_notes(pretrained: PretrainedModel, *, config: FinetuneConfig, rates: Collection[float]) -> list[str]:
    """Return a note if a small model is to be trained at the default learning rate, which suits larger ones.

    `rates` are those of the runs. A tagger on frozen features trains none of the model.
    """
    width = pretrained.model.hidden_size
    if config.features or width > _SMALL_WIDTH or set(rates) != {FinetuneOptimizerConfig.learning_rate}:
        return []
    return [
        f"a model of width {width} usually learns faster than at the default learning rate of "
        f"{FinetuneOptimizerConfig.learning_rate:g}: --config.optimizer.learning_rate=3e-4 is a good start "
        "(docs/howto/finetuning.md)"
    ]
