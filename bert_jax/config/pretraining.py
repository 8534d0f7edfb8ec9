"""What a pre-training run is made of, with the paper's values as defaults, and what its parts demand of each other."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.builder import build, check_fields, choices_of, to_dict
from bert_jax.config.data import MIN_SEQ_LENGTH, DataConfig, check_packing
from bert_jax.config.fields import field, group
from bert_jax.config.groups import (
    RECIPES,
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    check_mesh,
    check_profile,
)
from bert_jax.config.presets import model_preset
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """The masking procedure of section 3.1; the rows of Appendix C.2 are values of the three shares."""

    rate: float = field(0.15, at_least=0, at_most=1, doc="Fraction of the tokens that are predicted.")
    mask_share: float = field(0.8, at_least=0, at_most=1, doc="Fraction of those replaced by [MASK].")
    random_share: float = field(0.1, at_least=0, at_most=1, doc="Fraction of those replaced by a random token.")
    same_share: float = field(0.1, at_least=0, at_most=1, doc="Fraction of those left as they are.")
    whole_word: bool = field(False, doc="Mask all tokens of a word together.")


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """One part of the schedule: a fraction of the steps at one sequence length."""

    fraction: float = field(1.0, at_least=0, at_most=1, doc="Fraction of train.num_steps.")
    max_seq_length: int = field(128, at_least=MIN_SEQ_LENGTH, unit="tokens", doc="Length of a row.")
    # 20 at a length of 128, 77 at 512
    max_predictions_per_seq: int = field(
        0, at_least=0, unit="tokens", doc="Bound per instance; 0: masking.rate times the length, rounded up."
    )
    batch_size: int = field(0, at_least=0, unit="rows", doc="Global batch of this phase; 0: train.batch_size.")
    learning_rate: float = field(
        0.0, at_least=0, doc="Peak of a schedule of its own, with warm-up and decay; 0: the one schedule continues."
    )
    warmup_steps: int = field(0, at_least=0, unit="steps", doc="Warm-up of a schedule of its own.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length and the batch of the whole schedule."""

    num_steps: int = field(1_000_000, above=0, unit="steps", doc="Steps of all phases together.")
    batch_size: int = field(256, above=0, unit="rows", doc="Global batch.")
    gradient_accumulation_steps: int = field(1, above=0, unit="micro-batches", doc="Micro-batches per step.")
    max_nonfinite_steps: int = field(
        0, at_least=0, unit="steps", doc="Steps to skip whose loss or gradients are not finite; one more stops the run."
    )
    phases: tuple[PhaseConfig, ...] = field(
        (PhaseConfig(fraction=0.9, max_seq_length=128), PhaseConfig(fraction=0.1, max_seq_length=512)),
        doc="Parts of the schedule, in their order.",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a pre-training run is made of."""

    seed: int = field(0, at_least=0, doc="Seed of parameters, batches, masks and dropout.")
    recipe: str = field("modern", choices=RECIPES, doc="original: bug for bug; see README, Recipes.")
    model: ModelConfig = group(ModelConfig, doc="The encoder.")
    data: DataConfig = group(DataConfig, doc="Text, vocabulary and data set.")
    masking: MaskingConfig = group(MaskingConfig, doc="What the masked language model predicts.")
    optimizer: OptimizerConfig = group(OptimizerConfig, doc="Optimizer and learning rate.")
    mesh: MeshConfig = group(MeshConfig, doc="How devices are used.")
    train: TrainConfig = group(TrainConfig, doc="Length and batch.")
    checkpoint: CheckpointConfig = group(CheckpointConfig, doc="What is saved.")
    eval: EvalConfig = group(EvalConfig, doc="Evaluation while training.")
    log: LogConfig = group(LogConfig, doc="What is logged.")
    profile: ProfileConfig = group(ProfileConfig, doc="Traces for the profiler.")


CHOICES: Mapping[str, tuple[str, ...]] = choices_of(Config)


def default_config(*, model: str = "base") -> ConfigDict:
    """Return the paper's procedure as a ConfigDict for a config file to change, with the model preset `model`."""
    return ConfigDict(to_dict(dataclasses.replace(Config(), model=model_preset(model))))


def phase(**fields: Any) -> ConfigDict:
    """Return one entry of `train.phases`; the fields are those of `PhaseConfig`."""
    return ConfigDict(to_dict(PhaseConfig(**fields)))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> Config:
    """Turn what a config file and the command line gave into a validated `Config`.

    Raises:
      UserError: for an unknown field, a wrong type or an impossible combination; the line names the field.
    """
    return validate(build(Config, config))


def from_saved(record: Mapping[str, Any]) -> Config:
    """Return the config of a run's `config.json` or checkpoint.

    Before 0.2.0 attention could be computed by cuDNN, which `auto` now stands for.

    Raises:
      UserError: as `from_config_dict`.
    """
    model = dict(record.get("model", {}))
    if model.get("attention_implementation") == "cudnn":
        record = {**record, "model": {**model, "attention_implementation": "auto"}}
    return from_config_dict(record)


def validate(config: Config) -> Config:
    """Check every value and combination that can be checked without devices or data; return `config`.

    Raises:
      UserError: for the first violation, naming the field and what to type.
    """
    check_fields(config)
    check_packing(config.data)
    _check_model(config)
    _check_attention(config)
    _check_masking(config.masking)
    _check_phases(config)
    if config.recipe == "original" and config.optimizer.name == "adamw":
        raise UserError(
            "config.optimizer.name=adamw contradicts config.recipe=original: choose auto, bert_adam or lamb"
        )
    check_mesh(config.mesh)
    check_profile(config.profile)
    return config


def _check_model(config: Config) -> None:
    model = config.model
    if model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"config.model.num_attention_heads={model.num_attention_heads} does not divide "
            f"config.model.hidden_size={model.hidden_size}: change one of them"
        )
    if model.type_vocab_size < 2 and config.data.objective != "mlm":
        raise UserError(
            f"config.model.type_vocab_size={model.type_vocab_size}: pairs of segments need 2; or set "
            "config.data.objective=mlm"
        )


def _check_attention(config: Config) -> None:
    """Check that the kernel that is asked for takes this model and these lengths."""
    model, name = config.model, "config.model.attention_implementation"
    if model.attention_implementation == "pallas":
        heads = model.num_attention_heads
        if model.hidden_size != 64 * heads or heads % 2:
            raise UserError(
                f"{name}=pallas takes an even number of heads of 64, not {heads} heads of "
                f"{model.hidden_size // heads}: set {name}=auto"
            )
        for item in config.train.phases:
            if item.max_seq_length % 128 or item.max_seq_length > 512:
                raise UserError(
                    f"{name}=pallas takes lengths of 128, 256, 384 and 512, not {item.max_seq_length}: set "
                    f"{name}=auto, or another max_seq_length"
                )


def _check_masking(masking: MaskingConfig) -> None:
    total = masking.mask_share + masking.random_share + masking.same_share
    if abs(total - 1) > 1e-6:
        raise UserError(f"config.masking: mask_share + random_share + same_share must be 1, they add up to {total:g}")


def _check_phases(config: Config) -> None:
    phases = config.train.phases
    if not phases:
        raise UserError("config.train.phases is empty: give at least one bert_jax.config.phase(max_seq_length=128)")
    total = sum(item.fraction for item in phases)
    if abs(total - 1) > 1e-6:
        raise UserError(f"config.train.phases: the fractions must add up to 1, they add up to {total:g}")
    for index, item in enumerate(phases):
        _check_phase(config, item, path=f"config.train.phases[{index}]")


def _check_phase(config: Config, item: PhaseConfig, *, path: str) -> None:
    model, train = config.model, config.train
    if item.max_seq_length > model.max_position_embeddings:
        raise UserError(
            f"{path}.max_seq_length={item.max_seq_length} is longer than the position table: set it to at most "
            f"config.model.max_position_embeddings={model.max_position_embeddings}, or make that larger"
        )
    if item.max_predictions_per_seq > item.max_seq_length:
        raise UserError(
            f"{path}.max_predictions_per_seq={item.max_predictions_per_seq} is more than "
            f"max_seq_length={item.max_seq_length}: set it to 0 to have it computed"
        )
    if item.warmup_steps and not item.learning_rate:
        raise UserError(
            f"{path}.warmup_steps={item.warmup_steps} belongs to a schedule of its own: set {path}.learning_rate "
            "too, or only config.optimizer.warmup_steps"
        )
    batch = item.batch_size or train.batch_size
    if batch % train.gradient_accumulation_steps:
        raise UserError(
            f"config.train.gradient_accumulation_steps={train.gradient_accumulation_steps} does not divide the "
            f"batch of {batch} rows: choose a divisor of it"
        )
