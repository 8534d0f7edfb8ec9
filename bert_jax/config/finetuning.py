"""What a fine-tuning run is made of, and what its parts demand of each other; built as `bert_jax.config` is."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.builder import absent_group_message, build, check_fields, to_dict
from bert_jax.config.fields import field, group, optional_group
from bert_jax.config.groups import (
    RECIPES,
    REMAT,
    CheckpointConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    ProfileConfig,
    check_mesh,
    check_profile,
)
from bert_jax.config.task_options import (
    GROUP_OF_KIND,
    TASKS,
    DataOptions,
    NerOptions,
    OwnOptions,
    SquadOptions,
    option_groups,
)
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed; its shape comes from the model that is fine-tuned."""

    dtype: str = field(
        "auto",
        choices=("auto", "bfloat16", "float32"),
        doc="Type of the computation; auto is float32 on a CPU, else bfloat16.",
    )
    hidden_dropout_prob: float = field(
        -1.0, at_least=0, below=1, also=(-1, "the model's own"), doc="Dropout of hidden states."
    )
    attention_probs_dropout_prob: float = field(
        -1.0, at_least=0, below=1, also=(-1, "the model's own"), doc="Dropout of attention probabilities."
    )
    scan_layers: bool = field(
        True, doc="One compiled layer run for all; false unrolls: slower to compile, faster to run."
    )
    remat: str = field(
        "none", choices=REMAT, doc="What the backward pass recomputes: nothing, all but matmuls (dots), everything."
    )


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizerConfig:
    """The optimizer: AdamW with bias correction and 10 % warm-up (Mosbach et al. 2021), or the original's.

    The original's warm-up is 10 % too; `recipe="original"` takes away the bias correction and restores its schedule.
    """

    name: str = field(
        "auto",
        choices=("auto", "bert_adam", "adamw"),
        doc="Optimizer; auto is bert_adam under the original recipe, adamw under the modern one.",
    )
    learning_rate: float = field(3e-5, above=0, doc="Peak of the schedule.")
    warmup_fraction: float = field(0.1, at_least=0, below=1, doc="Fraction of the steps that warm up.")
    beta1: float = field(0.9, at_least=0, below=1, doc="Decay of the first moment.")
    beta2: float = field(0.999, at_least=0, below=1, doc="Decay of the second moment.")
    epsilon: float = field(1e-6, above=0, doc="Term added to the denominator of an update.")
    weight_decay: float = field(0.01, at_least=0, doc="Decoupled weight decay, times the learning rate.")
    max_grad_norm: float = field(1.0, above=0, doc="Global norm to which gradients are clipped.")
    layerwise_lr_decay: float = field(
        1.0, above=0, doc="Each layer's rate is this times that of the layer above (ELECTRA: 0.8 to 0.9)."
    )


@dataclasses.dataclass(frozen=True)
class FinetuneTrainConfig:
    """Batch and length of a run (A.3)."""

    batch_size: int = field(32, above=0, unit="examples", doc="Global batch.")
    num_epochs: float = field(3.0, above=0, unit="epochs", doc="Length of a run.")
    gradient_accumulation_steps: int = field(1, above=0, unit="micro-batches", doc="Micro-batches per step.")
    evals_per_epoch: int = field(1, above=0, unit="evaluations", doc="Evaluations on dev per epoch.")
    max_nonfinite_steps: int = field(
        0, at_least=0, unit="steps", doc="Steps to skip whose loss or gradients are not finite; one more stops the run."
    )


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """The grid of `--sweep`: the paper's (A.3)."""

    batch_size: tuple[int, ...] = field((16, 32), above=0, unit="examples", doc="Global batches.")
    learning_rate: tuple[float, ...] = field((5e-5, 3e-5, 2e-5), above=0, doc="Peaks of the schedule.")
    num_epochs: tuple[float, ...] = field((2.0, 3.0, 4.0), above=0, unit="epochs", doc="Lengths of a run.")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Everything a fine-tuning run is made of, but for the model that it begins with.

    `squad`, `ner` and `own` are there only where the task reads them.
    """

    task: str = field("mrpc", doc='A task, several separated by commas, or "all": the GLUE benchmark.')
    seed: int = field(0, at_least=0, doc="Seed of shuffling, new parameters and dropout.")
    recipe: str = field("modern", choices=RECIPES, doc="original: bug for bug; see README, Recipes.")
    data: DataOptions = group(DataOptions, doc="The task's data.")
    squad: SquadOptions | None = optional_group(
        doc="Extractive question answering.", only_for="squad_v1, squad_v2, and own with config.own.kind=span"
    )
    ner: NerOptions | None = optional_group(doc="Named entities.", only_for="ner, and own with config.own.kind=tags")
    own: OwnOptions | None = optional_group(doc="Custom data.", only_for="own")
    model: ComputeConfig = group(ComputeConfig, doc="How the model is computed.")
    optimizer: FinetuneOptimizerConfig = group(FinetuneOptimizerConfig, doc="Optimizer and learning rate.")
    train: FinetuneTrainConfig = group(FinetuneTrainConfig, doc="Batch and length.")
    sweep: SweepConfig = group(SweepConfig, doc="The grid of --sweep.")
    mesh: MeshConfig = group(MeshConfig, doc="How devices are used.")
    checkpoint: CheckpointConfig = group(CheckpointConfig, every=1000, keep_latest=1, doc="What is saved.")
    log: LogConfig = group(LogConfig, every=50, doc="What is logged.")
    profile: ProfileConfig = group(ProfileConfig, doc="Traces for the profiler.")

    @property
    def features(self) -> str:
        """Return the row of Table 7 that is trained, "" for fine-tuning."""
        return self.ner.features if self.ner else ""

    @property
    def intermediate_file(self) -> str:
        """Return the data set to train on first, "" for none."""
        return self.squad.intermediate_file if self.squad else ""


_OPTIONS = {"squad": SquadOptions, "ner": NerOptions, "own": OwnOptions}


def default_config(*, task: str) -> ConfigDict:
    """Return the defaults as a ConfigDict for a config file to change, with the options that `task` reads.

    Of custom data those of every kind: `own.kind` is still to be chosen.
    """
    groups = option_groups(task.split(","), own_kinds=tuple(GROUP_OF_KIND))
    return ConfigDict(to_dict(FinetuneConfig(task=task, **{name: _OPTIONS[name]() for name in groups})))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> FinetuneConfig:
    """Turn what a config file and the command line gave into a validated `FinetuneConfig`.

    Options of another task may be there with their defaults, as where `--task` takes the place of a config's task.

    Raises:
      UserError: for an unknown field, a wrong type, an impossible value or a changed option of another task; the line
      names the field.
    """
    built = build(FinetuneConfig, config)
    _check_task(built)
    _check_foreign_options(built)
    return validate(_with_own_groups(built))


def from_saved(record: Mapping[str, Any]) -> FinetuneConfig:
    """Return the config of a run's `config.json`.

    Such files once held the options of every task: those that the run did not read are left out.

    Raises:
      UserError: as `from_config_dict`.
    """
    return validate(_with_own_groups(build(FinetuneConfig, record)))


def config_of_task(config: FinetuneConfig, task: str) -> FinetuneConfig:
    """Return the config of one of the tasks that `config.task` names."""
    return _with_own_groups(dataclasses.replace(config, task=task))


def _groups(config: FinetuneConfig) -> list[str]:
    """Return the names of the groups that the config's tasks read."""
    own = config.own or OwnOptions()
    return option_groups(_tasks(config), own_kinds=(own.kind,))


def _with_own_groups(config: FinetuneConfig) -> FinetuneConfig:
    """Return `config` with the groups that its tasks read and no other."""
    own = _groups(config)
    groups = {name: (getattr(config, name) or cls()) if name in own else None for name, cls in _OPTIONS.items()}
    return dataclasses.replace(config, **groups)


def validate(config: FinetuneConfig) -> FinetuneConfig:
    """Check every value that can be checked without data; return `config`.

    Raises:
      UserError: for the first violation, naming the field and what to type.
    """
    check_fields(config)
    _check_task(config)
    _check_options(config)
    if config.recipe == "original" and config.optimizer.name == "adamw":
        raise UserError("config.optimizer.name=adamw contradicts config.recipe=original: choose auto or bert_adam")
    if config.data.dev_fraction and config.data.dev_split != "dev":
        raise UserError(
            f"config.data.dev_fraction={config.data.dev_fraction} contradicts config.data.dev_split=test: one holds "
            "out a part of train as dev, the other selects on test; give one of them"
        )
    check_mesh(config.mesh)
    check_profile(config.profile)
    return config


def _check_task(config: FinetuneConfig) -> None:
    for task in _tasks(config):
        if task not in (*TASKS, "all"):
            raise UserError(f"config.task={task!r}: choose one of {', '.join(TASKS)}, or all for GLUE")


def _check_foreign_options(config: FinetuneConfig) -> None:
    """Refuse options of other tasks that were changed."""
    shown = f"config.task={config.task}"
    if config.own and "own" in _tasks(config):
        shown += f" with config.own.kind={config.own.kind}"
    for name in (name for name in _OPTIONS if name not in _groups(config)):
        plain = _OPTIONS[name]()
        for option, value in dataclasses.asdict(getattr(config, name) or plain).items():
            if value != getattr(plain, option):
                raise UserError(absent_group_message(FinetuneConfig, f"{name}.{option}", config=shown))


def _check_options(config: FinetuneConfig) -> None:
    """Check the options of tasks, those of one task against what all tasks have."""
    squad, own, length = config.squad, config.own, config.data.max_seq_length
    if squad and squad.null_score_threshold != "tune":
        _check_number(squad.null_score_threshold, path="config.squad.null_score_threshold")
    if squad and "squad" in config.task and squad.max_query_length + 8 > length:
        raise UserError(
            f"config.squad.max_query_length={squad.max_query_length} leaves no room for the context in rows of "
            f"config.data.max_seq_length={length}: make it smaller"
        )
    if own and own.kind == "choice" and not own.choices:
        raise UserError(
            "config.own.choices is empty: name the column of a list, or one column per choice, separated by commas"
        )


def _check_number(text: str, *, path: str) -> None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}={text!r}: write a number, or tune")


def _tasks(config: FinetuneConfig) -> Sequence[str]:
    return config.task.split(",")


def optimizer_config(config: FinetuneConfig) -> OptimizerConfig:
    """Return the part of the optimizer that does not change within a sweep, as `training.optim` takes it."""
    ours = config.optimizer
    return OptimizerConfig(
        name=ours.name,
        beta1=ours.beta1,
        beta2=ours.beta2,
        epsilon=ours.epsilon,
        weight_decay=ours.weight_decay,
        max_grad_norm=ours.max_grad_norm,
    )
