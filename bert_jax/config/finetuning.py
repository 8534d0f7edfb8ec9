"""Define what a fine-tuning run is made of; the same form and the same checks as `bert_jax.config`."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bert_jax import config as base
from bert_jax.config import CheckpointConfig, LogConfig, MeshConfig, OptimizerConfig
from bert_jax.config.task_options import FEATURES, DataOptions, NerOptions, OwnOptions, SquadOptions
from bert_jax.errors import UserError
from bert_jax.kinds.table import KINDS
from bert_jax.tasks import registry


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Say how the model is computed; its shape comes from the SOURCE."""

    dtype: str = "auto"  # float32 on a CPU, else bfloat16
    hidden_dropout_prob: float = -1.0  # -1: the SOURCE's
    attention_probs_dropout_prob: float = -1.0
    scan_layers: bool = True
    remat: str = "none"


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizerConfig:
    """Hold the optimiser: AdamW with bias correction and 10 % warm-up (Mosbach et al. 2021), or the original's.

    The original's warm-up is 10 % too; `recipe="original"` takes away the bias correction and restores its schedule.
    """

    name: str = "auto"
    learning_rate: float = 3e-5
    warmup_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    layerwise_lr_decay: float = 1.0  # each layer's rate is this times that of the layer above (ELECTRA: 0.8 to 0.9)


@dataclasses.dataclass(frozen=True)
class FinetuneTrainConfig:
    """Hold batch and length of a run (A.3)."""

    batch_size: int = 32
    num_epochs: float = 3.0
    gradient_accumulation_steps: int = 1
    evals_per_epoch: int = 1


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Hold the grid of `--sweep`: the paper's (A.3)."""

    batch_size: tuple[int, ...] = (16, 32)
    learning_rate: tuple[float, ...] = (5e-5, 3e-5, 2e-5)
    num_epochs: tuple[float, ...] = (2.0, 3.0, 4.0)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Hold everything a fine-tuning run is made of, but for the SOURCE."""

    task: str = "mrpc"  # one of `tasks.registry.TASKS`, several parted by commas, or "all": the GLUE benchmark
    seed: int = 0
    recipe: str = "modern"
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    squad: SquadOptions = dataclasses.field(default_factory=SquadOptions)
    ner: NerOptions = dataclasses.field(default_factory=NerOptions)
    own: OwnOptions = dataclasses.field(default_factory=OwnOptions)
    model: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    optimizer: FinetuneOptimizerConfig = dataclasses.field(default_factory=FinetuneOptimizerConfig)
    train: FinetuneTrainConfig = dataclasses.field(default_factory=FinetuneTrainConfig)
    sweep: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(
        default_factory=lambda: CheckpointConfig(every=1000, keep_latest=1)
    )
    log: LogConfig = dataclasses.field(default_factory=lambda: LogConfig(every=50))


CHOICES: Mapping[str, tuple[str, ...]] = {
    "recipe": ("modern", "original"),
    "model.dtype": ("auto", "bfloat16", "float32"),
    "model.remat": ("none", "dots", "full"),
    "optimizer.name": ("auto", "bert_adam", "adamw"),
    "own.kind": tuple(KINDS),
    "ner.features": ("", *FEATURES),
    "data.dev_split": ("dev", "test"),
}


def default_config(*, task: str) -> ConfigDict:
    """Return the defaults as a ConfigDict for a config file to change."""
    return ConfigDict(dataclasses.asdict(FinetuneConfig(task=task)))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> FinetuneConfig:
    """Turn what a config file and the command line gave into a validated `FinetuneConfig`.

    Raises:
      UserError: for an unknown field, a wrong type or an impossible value; the line names the field.
    """
    raw = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return validate(base._build(FinetuneConfig, raw, path=""))


def to_json(config: FinetuneConfig) -> str:
    """Return `config` as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def flatten(config: FinetuneConfig) -> dict[str, Any]:
    """Return the leaves by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            leaves |= {f"{name}.{inner}": leaf for inner, leaf in value.items()}
        else:
            leaves[name] = value
    return leaves


def validate(config: FinetuneConfig) -> FinetuneConfig:
    """Check every value that can be checked without data; return `config`.

    Raises:
      UserError: for the first violation, naming the field and what to type.
    """
    leaves = flatten(config)
    for path, choices in CHOICES.items():
        if leaves[path] not in choices:
            shown = ", ".join(choice or "''" for choice in choices)
            raise UserError(f"config.{path}={leaves[path]!r}: choose one of {shown}")
    for task in _tasks(config):
        if task not in (*registry.TASKS, "all"):
            raise UserError(f"config.task={task!r}: choose one of {', '.join(registry.TASKS)}, or all for GLUE")
    positive = (
        "data.max_seq_length squad.doc_stride squad.max_query_length squad.n_best_size squad.max_answer_length "
        "squad.intermediate_epochs ner.bilstm_hidden_size ner.bilstm_layers optimizer.learning_rate optimizer.epsilon "
        "optimizer.max_grad_norm optimizer.layerwise_lr_decay train.batch_size train.num_epochs "
        "train.gradient_accumulation_steps train.evals_per_epoch checkpoint.every log.every"
    )
    for path in positive.split():
        if leaves[path] <= 0:
            raise UserError(f"config.{path}={leaves[path]}: must be larger than 0")
    for path in ("data.dev_fraction", "optimizer.warmup_fraction", "optimizer.beta1", "optimizer.beta2"):
        if not 0 <= leaves[path] < 1:
            raise UserError(f"config.{path}={leaves[path]}: must lie from 0 to below 1")
    for path in ("data.max_train_examples", "data.max_eval_examples", "seed", "data.seed", "optimizer.weight_decay"):
        if leaves[path] < 0:
            raise UserError(f"config.{path}={leaves[path]}: must not be negative")
    for path in ("model.hidden_dropout_prob", "model.attention_probs_dropout_prob"):
        if leaves[path] != -1 and not 0 <= leaves[path] < 1:
            raise UserError(f"config.{path}={leaves[path]}: must lie from 0 to below 1, or be -1 for the model's own")
    if config.squad.null_score_threshold != "tune":
        _number(config.squad.null_score_threshold, field="squad.null_score_threshold")
    if config.data.max_seq_length < 8:
        raise UserError(f"config.data.max_seq_length={config.data.max_seq_length}: must be at least 8")
    if config.squad.max_query_length + 8 > config.data.max_seq_length and "squad" in config.task:
        raise UserError(
            f"config.squad.max_query_length={config.squad.max_query_length} leaves no room for the context in rows of "
            f"config.data.max_seq_length={config.data.max_seq_length}: make it smaller"
        )
    if config.recipe == "original" and config.optimizer.name == "adamw":
        raise UserError("config.optimizer.name=adamw contradicts config.recipe=original: choose auto or bert_adam")
    if config.data.dev_fraction and config.data.dev_split != "dev":
        raise UserError(
            f"config.data.dev_fraction={config.data.dev_fraction} contradicts config.data.dev_split=test: one holds "
            "out a part of train as dev, the other selects on test; give one of them"
        )
    _check_task_options(config)
    if config.own.kind == "choice" and config.task == "own" and not config.own.choices:
        raise UserError(
            "config.own.choices is empty: name the column of a list, or one column a choice, parted by commas"
        )
    return config


def _check_task_options(config: FinetuneConfig) -> None:
    """Refuse options that no task of the config reads."""
    spans = any(task.startswith("squad") or (task, config.own.kind) == ("own", "span") for task in _tasks(config))
    if config.squad.intermediate_file and not spans:
        raise UserError(
            f"config.squad.intermediate_file={config.squad.intermediate_file}: config.task={config.task} answers no "
            "questions: leave it empty, or choose squad_v1, squad_v2, or own with config.own.kind=span"
        )
    tags = any(task == "ner" or (task, config.own.kind) == ("own", "tags") for task in _tasks(config))
    if config.ner.features and not tags:
        raise UserError(
            f"config.ner.features={config.ner.features}: config.task={config.task} tags no words: leave it empty, or "
            "choose ner, or own with config.own.kind=tags"
        )


def _tasks(config: FinetuneConfig) -> list[str]:
    return config.task.split(",")


def _number(text: str, *, field: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"config.{field}={text!r}: write a number, or tune")
    return value


def optimizer_config(config: FinetuneConfig) -> OptimizerConfig:
    """Return the part of the optimiser that does not change within a sweep, as `training.optim` takes it."""
    ours = config.optimizer
    return OptimizerConfig(
        name=ours.name,
        beta1=ours.beta1,
        beta2=ours.beta2,
        epsilon=ours.epsilon,
        weight_decay=ours.weight_decay,
        max_grad_norm=ours.max_grad_norm,
    )
