"""Config of a fine-tuning run, and the checks across its groups; built like `bert_jax.config`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.builder import absent_group_message, build, check_fields, to_dict
from bert_jax.config.fields import MAX_SEED, field, group, optional_group
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
    WINDOWS,
    DataOptions,
    EmbedOptions,
    NerOptions,
    OwnOptions,
    RerankOptions,
    SquadOptions,
    option_groups,
)
from bert_jax.errors import UserError, choose_one


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the model is computed, and what is put on its encoder; its shape comes from the model being fine-tuned."""

    bilstm_layers: int = field(
        0,
        at_least=0,
        unit="layers",
        doc="Layers of a randomly initialized BiLSTM between encoder and head (Table 5); each of its directions has "
        "half the encoder's width.",
    )
    frozen_encoder: bool = field(
        False, doc="Train only what is on top of the encoder: the feature-based approach for any task."
    )

    dtype: str = field(
        "auto",
        choices=("auto", "bfloat16", "float32"),
        doc="Data type of the computation; auto is float32 on a CPU, bfloat16 otherwise.",
    )
    hidden_dropout_prob: float = field(
        -1.0, at_least=0, below=1, also=(-1, "the model's value"), doc="Dropout of hidden states."
    )
    attention_probs_dropout_prob: float = field(
        -1.0, at_least=0, below=1, also=(-1, "the model's value"), doc="Dropout of attention probabilities."
    )
    scan_layers: bool = field(
        True, doc="Scan over layers: one compiled layer for all; false unrolls them: slower to compile, faster to run."
    )
    remat: str = field(
        "none", choices=REMAT, doc="What the backward pass recomputes: nothing, all but matmuls (dots), or everything."
    )


@dataclasses.dataclass(frozen=True)
class FinetuneOptimizerConfig:
    """The optimizer: AdamW with bias correction and 10 % warm-up (Mosbach et al. 2021), or the original's.

    The original also warms up for 10 % of the steps. `recipe="original"` removes the bias correction and restores the
    original's schedule.
    """

    name: str = field(
        "auto",
        choices=("auto", "bert_adam", "adamw"),
        doc="Optimizer; auto is bert_adam under the original recipe, adamw under the modern one.",
    )
    learning_rate: float = field(3e-5, above=0, doc="Peak learning rate of the schedule.")
    warmup_fraction: float = field(0.1, at_least=0, below=1, doc="Fraction of the steps used for warm-up.")
    beta1: float = field(0.9, at_least=0, below=1, doc="Decay of the first moment.")
    beta2: float = field(0.999, at_least=0, below=1, doc="Decay of the second moment.")
    epsilon: float = field(1e-6, above=0, doc="Term added to the denominator of the update.")
    weight_decay: float = field(0.01, at_least=0, doc="Decoupled weight decay, multiplied by the learning rate.")
    max_grad_norm: float = field(1.0, above=0, doc="Global norm to which gradients are clipped.")
    layerwise_lr_decay: float = field(
        1.0, above=0, doc="Factor on the learning rate from each layer to the one below (ELECTRA: 0.8 to 0.9)."
    )


@dataclasses.dataclass(frozen=True)
class FinetuneTrainConfig:
    """Batch size and number of epochs of a run (paper, A.3)."""

    batch_size: int = field(32, above=0, unit="examples", doc="Global batch size.")
    num_epochs: float = field(3.0, above=0, unit="epochs", doc="Epochs of training.")
    gradient_accumulation_steps: int = field(1, above=0, unit="micro-batches", doc="Micro-batches per optimizer step.")
    evals_per_epoch: int = field(1, above=0, unit="evaluations", doc="Evaluations on dev per epoch.")
    max_nonfinite_steps: int = field(
        0, at_least=0, unit="steps", doc="Steps with non-finite loss or gradients to skip; one more stops the run."
    )


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A teacher whose outputs the model learns, besides the labels (Hinton et al. 2015)."""

    teacher: str = field("", doc="Model fine-tuned for the same task, whose outputs are learned; empty: none.")
    weight: float = field(0.5, above=0, at_most=1, doc="Fraction of the loss that compares with the teacher.")
    temperature: float = field(2.0, above=0, doc="Divisor of the logits of both models in the comparison.")


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """The grid of `--sweep`; defaults are the paper's (A.3)."""

    batch_size: tuple[int, ...] = field((16, 32), above=0, unit="examples", doc="Global batch sizes.")
    learning_rate: tuple[float, ...] = field((5e-5, 3e-5, 2e-5), above=0, doc="Peak learning rates.")
    num_epochs: tuple[float, ...] = field((2.0, 3.0, 4.0), above=0, unit="epochs", doc="Epochs of training.")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """The complete config of a fine-tuning run, except for the model that it starts from.

    `squad`, `ner`, `own`, `embed` and `rerank` are present only if the task reads them.
    """

    task: str = field("mrpc", doc='Task; several separated by commas; "all" for the GLUE benchmark.')
    seed: int = field(
        0, at_least=0, at_most=MAX_SEED, doc="Seed of shuffling, newly initialized parameters and dropout."
    )
    recipe: str = field(
        "modern",
        choices=RECIPES,
        doc="original reproduces google-research/bert bug for bug.",
    )
    data: DataOptions = group(DataOptions, doc="The task's data.")
    squad: SquadOptions | None = optional_group(
        doc="Extractive question answering.", only_for="squad_v1, squad_v2, and own with config.own.kind=span"
    )
    ner: NerOptions | None = optional_group(doc="Named entities.", only_for="ner, and own with config.own.kind=tags")
    own: OwnOptions | None = optional_group(doc="Custom data.", only_for="own")
    embed: EmbedOptions | None = optional_group(doc="Text embeddings.", only_for="embed")
    rerank: RerankOptions | None = optional_group(doc="Rerankers, trained on a teacher's scores.", only_for="rerank")
    model: ComputeConfig = group(ComputeConfig, doc="How the model is computed.")
    optimizer: FinetuneOptimizerConfig = group(FinetuneOptimizerConfig, doc="Optimizer and learning rate.")
    train: FinetuneTrainConfig = group(FinetuneTrainConfig, doc="Batch size and number of epochs.")
    distill: DistillConfig = group(DistillConfig, doc="A teacher.")
    sweep: SweepConfig = group(SweepConfig, doc="The grid of --sweep.")
    mesh: MeshConfig = group(MeshConfig, doc="Device mesh.")
    checkpoint: CheckpointConfig = group(CheckpointConfig, every=1000, keep_latest=1, doc="Checkpoints.")
    log: LogConfig = group(LogConfig, every=50, doc="Logging.")
    profile: ProfileConfig = group(ProfileConfig, doc="Traces for the profiler.")

    @property
    def features(self) -> str:
        """Return the feature-based approach (a row of Table 7), "" for fine-tuning."""
        return self.ner.features if self.ner else ""

    @property
    def intermediate_file(self) -> str:
        """Return the data set of intermediate training, "" for none."""
        return self.squad.intermediate_file if self.squad else ""


_OPTIONS = {
    "squad": SquadOptions,
    "ner": NerOptions,
    "own": OwnOptions,
    "embed": EmbedOptions,
    "rerank": RerankOptions,
}


def default_config(*, task: str) -> ConfigDict:
    """Return the defaults as an editable ConfigDict, with the options that `task` reads.

    Custom data gets the options of every kind, because the config file sets `own.kind` later.
    """
    groups = option_groups(task.split(","), own_kinds=tuple(GROUP_OF_KIND))
    return ConfigDict(to_dict(FinetuneConfig(task=task, **{name: _OPTIONS[name]() for name in groups})))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> FinetuneConfig:
    """Return a validated `FinetuneConfig` from a config file's ConfigDict with its command-line overrides.

    Options of another task are accepted with their default values, because `--task` may replace the config's task.

    Raises:
      UserError: for an unknown field, a wrong type, an impossible value or a changed option of another task; the
      message names the field.
    """
    built = build(FinetuneConfig, config)
    _check_task(built)
    _check_foreign_options(built)
    return validate(_with_own_groups(built))


def from_saved(record: Mapping[str, Any]) -> FinetuneConfig:
    """Return the config of a run's `config.json`.

    Files of earlier versions hold the options of every task; those that the run did not read are dropped.

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
    """Return `config` with exactly the groups that its tasks read."""
    own = _groups(config)
    groups = {name: (getattr(config, name) or cls()) if name in own else None for name, cls in _OPTIONS.items()}
    return dataclasses.replace(config, **groups)


def validate(config: FinetuneConfig) -> FinetuneConfig:
    """Check every value that needs no data; return `config`.

    Raises:
      UserError: for the first violation, naming the field and what to type.
    """
    check_fields(config)
    _check_task(config)
    _check_options(config)
    _check_on_top(config)
    if config.recipe == "original" and config.optimizer.name == "adamw":
        raise UserError("config.optimizer.name=adamw contradicts config.recipe=original: choose auto or bert_adam")
    if config.data.dev_fraction and config.data.dev_split != "dev":
        raise UserError(
            f"config.data.dev_fraction={config.data.dev_fraction} contradicts config.data.dev_split=test: the first "
            "holds out part of train as dev, the second selects on test; set only one of them"
        )
    check_mesh(config.mesh)
    check_profile(config.profile)
    return config


def _check_task(config: FinetuneConfig) -> None:
    for task in _tasks(config):
        if task not in (*TASKS, "all"):
            raise UserError(f"config.task={task!r}: {choose_one(task, TASKS)}, or all for GLUE")


def _check_foreign_options(config: FinetuneConfig) -> None:
    """Raise an error for changed options of other tasks."""
    shown = f"config.task={config.task}"
    if config.own and "own" in _tasks(config):
        shown += f" with config.own.kind={config.own.kind}"
    for name in (name for name in _OPTIONS if name not in _groups(config)):
        plain = _OPTIONS[name]()
        for option, value in dataclasses.asdict(getattr(config, name) or plain).items():
            if value != getattr(plain, option):
                raise UserError(absent_group_message(FinetuneConfig, f"{name}.{option}", config=shown))


def _check_options(config: FinetuneConfig) -> None:
    """Check the options of the tasks, also against the options common to all tasks."""
    squad, own, length = config.squad, config.own, config.data.max_seq_length
    _check_truncation(config)
    _check_embed(config)
    if own and own.class_weights and own.kind != "classification":
        raise UserError(
            f"config.own.class_weights={own.class_weights}: config.own.kind={own.kind} has no class weights: omit it, "
            "or use classification"
        )
    if squad and squad.null_score_threshold != "tune":
        _check_number(squad.null_score_threshold, path="config.squad.null_score_threshold")
    if squad and "squad" in config.task and squad.max_query_length + 8 > length:
        raise UserError(
            f"config.squad.max_query_length={squad.max_query_length} leaves no space for the context in "
            f"config.data.max_seq_length={length} tokens: reduce it"
        )
    if own and own.kind == "choice" and not own.choices:
        raise UserError(
            "config.own.choices is empty: set it to a column that holds a list, or to one column per choice, separated "
            "by commas"
        )


def _check_on_top(config: FinetuneConfig) -> None:
    """Check that there is a head, and not one that has a BiLSTM of its own on a frozen encoder."""
    for name in ("bilstm_layers", "frozen_encoder"):
        if config.embed and getattr(config.model, name):
            raise UserError(
                f"config.model.{name}={getattr(config.model, name)}: embeddings are the encoder's own states: leave it "
                "out"
            )
        if config.features and getattr(config.model, name):
            raise UserError(
                f"config.model.{name}={getattr(config.model, name)}: config.ner.features={config.features} freezes the "
                "encoder and has a BiLSTM (config.ner.bilstm_layers): leave one of them out"
            )


def _check_embed(config: FinetuneConfig) -> None:
    embed = config.embed
    if embed and embed.form == "texts" and config.data.dev_fraction:
        raise UserError(
            f"config.data.dev_fraction={config.data.dev_fraction}: single texts cannot be scored: omit it, and give a "
            "dev file with pairs or scores"
        )
    if embed and embed.form == "scores" and embed.symmetric:
        raise UserError("config.embed.symmetric: the loss of scored pairs has no direction: omit it")


def _check_truncation(config: FinetuneConfig) -> None:
    """Check that the tasks read truncated texts: spans and tags have windows of their own."""
    truncation, kind = config.data.truncation, config.own.kind if config.own else ""
    if truncation == "head":
        return
    for task in _tasks(config):
        name = f"config.own.kind={kind}" if task == "own" else f"config.task={task}"
        if task.startswith("squad") or task == "ner" or (task == "own" and kind in GROUP_OF_KIND):
            raise UserError(
                f"config.data.truncation={truncation}: {name} reads long texts in windows of its own: omit it"
            )
        pairs = task not in ("cola", "sst2", "own")
        if config.own and task == "own":
            pairs = kind == "choice" or bool(config.own.text_pair)
        if truncation == WINDOWS and pairs:
            raise UserError(f"config.data.truncation=windows: {name} reads pairs of texts: choose head or head_tail")


def _check_number(text: str, *, path: str) -> None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}={text!r}: set it to a number, or to tune")


def _tasks(config: FinetuneConfig) -> Sequence[str]:
    return config.task.split(",")


def optimizer_config(config: FinetuneConfig) -> OptimizerConfig:
    """Return the optimizer options that a sweep does not change, as `training.optimizers` takes them."""
    options = config.optimizer
    return OptimizerConfig(
        name=options.name,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
    )
