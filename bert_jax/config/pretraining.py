"""Config of a pre-training run, with the paper's values as defaults, and the checks across its groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config.attention import check_attention
from bert_jax.config.builder import build, check_fields, choices_of, to_dict
from bert_jax.config.data import MIN_SEQ_LENGTH, DataConfig, check_packing
from bert_jax.config.distillation import DistillationConfig, check_distillation
from bert_jax.config.fields import MAX_SEED, field, group, info, optional_group
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

BERT_EPOCHS = 40  # over its 3.3 billion words (A.2)


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """The masking procedure of section 3.1; Appendix C.2 varies the three `*_share` fractions."""

    rate: float = field(
        0.15, at_least=0, at_most=1, doc="Fraction of the tokens that are predicted; evaluations always use this one."
    )
    mask_share: float = field(0.8, at_least=0, at_most=1, doc="Fraction of the predicted tokens replaced by [MASK].")
    random_share: float = field(
        0.1, at_least=0, at_most=1, doc="Fraction of the predicted tokens replaced by a random token."
    )
    same_share: float = field(0.1, at_least=0, at_most=1, doc="Fraction of the predicted tokens left unchanged.")
    whole_word: bool = field(False, doc="Whole-word masking: mask all tokens of a word together.")


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """One phase of the schedule: a fraction of the steps at one sequence length."""

    fraction: float = field(1.0, at_least=0, at_most=1, doc="Fraction of train.num_steps.")
    max_seq_length: int = field(128, at_least=MIN_SEQ_LENGTH, unit="tokens", doc="Sequence length.")
    # 20 at a length of 128, 77 at 512
    max_predictions_per_seq: int = field(
        0,
        at_least=0,
        unit="tokens",
        doc="Most predicted tokens per instance; 0: the masking rate times the length, rounded up.",
    )
    masking_rate: float = field(
        0.0, at_least=0, at_most=1, doc="Fraction of the tokens that are predicted in this phase; 0: masking.rate."
    )
    batch_size: int = field(
        0, at_least=0, unit="sequences", doc="Global batch size of this phase; 0: train.batch_size."
    )
    learning_rate: float = field(
        0.0,
        at_least=0,
        doc="Peak of a separate schedule with warm-up and decay; 0: the global schedule continues.",
    )
    warmup_steps: int = field(0, at_least=0, unit="steps", doc="Warm-up steps of the phase's separate schedule.")
    global_rope_theta: float = field(
        0.0, at_least=0, doc="The model's global_rope_theta from this phase on (longer sequences); 0: unchanged."
    )
    local_attention: int = field(
        0, at_least=0, unit="tokens", doc="The model's local_attention from this phase on; 0: unchanged."
    )
    objective: str = field(
        "",
        choices=("", "causal"),
        doc="causal: in this phase the model reads left to right and predicts the next token at every position; empty: "
        "train.objective.",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What is trained, number of steps and batch size."""

    objective: str = field(
        "auto",
        choices=("auto", "mlm", "causal"),
        doc="What is trained on the data: auto, all of data.objective; mlm, the masked language model alone, also on "
        "pairs of segments; causal, the next token at every position (for attention_direction=left_to_right).",
    )
    num_steps: int = field(1_000_000, above=0, unit="steps", doc="Total steps of all phases.")
    num_epochs: float = field(
        0.0, at_least=0, unit="epochs", doc="Times that the run goes through the text; above 0 it replaces num_steps."
    )
    batch_size: int = field(256, above=0, unit="sequences", doc="Global batch size.")
    gradient_accumulation_steps: int = field(1, above=0, unit="micro-batches", doc="Micro-batches per optimizer step.")
    max_nonfinite_steps: int = field(
        0, at_least=0, unit="steps", doc="Steps with non-finite loss or gradients to skip; one more stops the run."
    )
    phases: tuple[PhaseConfig, ...] = field(
        (PhaseConfig(fraction=0.9, max_seq_length=128), PhaseConfig(fraction=0.1, max_seq_length=512)),
        doc="Phases of the schedule, in order.",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """The complete config of a pre-training run."""

    seed: int = field(0, at_least=0, at_most=MAX_SEED, doc="Seed of parameters, batches, masks and dropout.")
    recipe: str = field(
        "modern",
        choices=RECIPES,
        doc="original reproduces google-research/bert bug for bug.",
    )
    model: ModelConfig = group(ModelConfig, doc="The encoder.")
    data: DataConfig = group(DataConfig, doc="Text, vocabulary and data set.")
    masking: MaskingConfig = group(MaskingConfig, doc="Masking for the masked language model.")
    distill: DistillationConfig | None = optional_group(doc="A teacher.", only_for="configs for `bert-jax distill`")
    optimizer: OptimizerConfig = group(OptimizerConfig, doc="Optimizer and learning rate.")
    mesh: MeshConfig = group(MeshConfig, doc="Device mesh.")
    train: TrainConfig = group(TrainConfig, doc="What is trained, number of steps and batch size.")
    checkpoint: CheckpointConfig = group(CheckpointConfig, doc="Checkpoints.")
    eval: EvalConfig = group(EvalConfig, doc="Evaluation during training.")
    log: LogConfig = group(LogConfig, doc="Logging.")
    profile: ProfileConfig = group(ProfileConfig, doc="Traces for the profiler.")

    @property
    def next_sentence(self) -> bool:
        """Return whether the loss has a second part: next sentence, or sentence order."""
        return self.train.objective == "auto" and self.data.objective != "mlm"

    @property
    def causal(self) -> bool:
        """Return whether every position predicts the next token."""
        return self.train.objective == "causal"


CHOICES: Mapping[str, tuple[str, ...]] = choices_of(Config)


def default_config(*, model: str = "base", distill: bool = False) -> ConfigDict:
    """Return the paper's procedure as an editable ConfigDict, of a model preset and the vocabulary of the data.

    With `distill` it has the options of distillation.
    """
    shape = dataclasses.replace(model_preset(model), vocab_size=0)
    options = DistillationConfig() if distill else None
    return ConfigDict(to_dict(dataclasses.replace(Config(), model=shape, distill=options)))


def phase(**fields: Any) -> ConfigDict:
    """Return one entry of `train.phases`; `fields` are those of `PhaseConfig`."""
    return ConfigDict(to_dict(PhaseConfig(**fields)))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> Config:
    """Return a validated `Config` from a config file's ConfigDict with its command-line overrides.

    Raises:
      UserError: for an unknown field, a wrong type or an impossible combination; the message names the field.
    """
    return validate_new(build(Config, config))


def phase_ends(phases: Sequence[PhaseConfig], *, num_steps: int) -> tuple[int, ...]:
    """Return the step after the last of each phase: rounded to whole steps, the last one `num_steps`."""
    fraction, ends = 0.0, []
    for item in phases:
        fraction += item.fraction
        ends.append(round(fraction * num_steps))
    return (*ends[:-1], num_steps)


def phase_models(model: ModelConfig, *, phases: Sequence[PhaseConfig]) -> tuple[ModelConfig, ...]:
    """Return the model as each phase trains it: with the values that it and the phases before it set.

    A causal phase alone reads left to right.
    """
    models = []
    for item in phases:
        changes = {name: value for name in _MODEL_FIELDS if (value := getattr(item, name))}
        model = dataclasses.replace(model, **changes) if changes else model
        is_causal = item.objective == "causal"
        models.append(dataclasses.replace(model, attention_direction="left_to_right") if is_causal else model)
    return tuple(models)


def model_at(model: ModelConfig, *, phases: Sequence[PhaseConfig], num_steps: int, step: int) -> ModelConfig:
    """Return the model of a checkpoint at `step`: as the phase that ended there trained it."""
    ends = phase_ends(phases, num_steps=num_steps)
    models = phase_models(model, phases=phases)
    return next((of_phase for of_phase, end in zip(models, ends, strict=True) if step <= end and end), models[-1])


_MODEL_FIELDS = ("global_rope_theta", "local_attention")  # of `ModelConfig` that a phase may change


def from_saved(record: Mapping[str, Any]) -> Config:
    """Return the config of a run's `config.json` or checkpoint.

    Configs written before 0.2.0 may say `attention_implementation=cudnn`; it is read as `auto`.

    Raises:
      UserError: as `from_config_dict`.
    """
    model = record.get("model")
    if isinstance(model, Mapping) and model.get("attention_implementation") == "cudnn":
        record = {**record, "model": {**model, "attention_implementation": "auto"}}
    return validate(build(Config, record))


def validate_new(config: Config) -> Config:
    """Check a config as `validate` does, and what runs of earlier versions, which are still read, could do.

    Raises:
      UserError: also for next-sentence prediction by a left-to-right model.
    """
    validate(config)
    direction = config.model.attention_direction
    if config.next_sentence and direction != "bidirectional":
        raise UserError(
            f"config.data.objective={config.data.objective} classifies [CLS], which sees only itself with "
            f"config.model.attention_direction={direction}: set --config.train.objective=causal, or mlm"
        )
    return config


def validate(config: Config) -> Config:
    """Check every value and combination that needs neither devices nor data; return `config`.

    Raises:
      UserError: for the first violation, naming the field and what to type.
    """
    check_fields(config)
    check_packing(config.data)
    _check_model(config)
    check_attention(config.model, lengths=[item.max_seq_length for item in config.train.phases])
    _check_masking(config.masking)
    _check_causal(config)
    check_distillation(config.distill, model=config.model)
    _check_phases(config)
    _check_optimizer(config)
    check_mesh(config.mesh)
    check_profile(config.profile)
    return config


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    if config.recipe == "original" and optimizer.name not in ("auto", "bert_adam", "lamb"):
        raise UserError(
            f"config.optimizer.name={optimizer.name} contradicts config.recipe=original: choose auto, bert_adam or lamb"
        )
    if config.recipe == "original" and optimizer.schedule != "linear":
        raise UserError(
            f"config.optimizer.schedule={optimizer.schedule} contradicts config.recipe=original: choose linear, or "
            "config.recipe=modern"
        )
    if optimizer.decay_steps and optimizer.schedule == "linear":
        raise UserError(
            f"config.optimizer.decay_steps={optimizer.decay_steps} is for config.optimizer.schedule=wsd: set that, or "
            "leave decay_steps at 0"
        )
    if optimizer.clip_replicas > 1 and not optimizer.max_grad_norm:
        raise UserError(
            f"config.optimizer.clip_replicas={optimizer.clip_replicas} needs a norm to clip to: set "
            "config.optimizer.max_grad_norm, or clip_replicas=1"
        )


def _check_model(config: Config) -> None:
    model = config.model
    if model.attention_direction == "right_to_left" and model.architecture != "lstm":
        raise UserError(
            "config.model.attention_direction=right_to_left is for --config.model.architecture=lstm: choose "
            "left_to_right or bidirectional"
        )
    for item in dataclasses.fields(model):
        owner, value = info(item).architecture, getattr(model, item.name)
        if owner and owner != model.architecture and value != item.default:
            raise UserError(
                f"config.model.{item.name}={value!r}: a field of config.model.architecture={owner}, not of "
                f"{model.architecture}: leave it out"
            )
    if model.hidden_size % model.num_attention_heads:
        raise UserError(
            f"config.model.num_attention_heads={model.num_attention_heads} does not divide "
            f"config.model.hidden_size={model.hidden_size}: change one of them"
        )
    if model.type_vocab_size < 2 and config.data.objective != "mlm":
        raise UserError(
            f"config.model.type_vocab_size={model.type_vocab_size}: pairs of segments need 2: set it to 2, "
            "or set config.data.objective=mlm"
        )


def _check_masking(masking: MaskingConfig) -> None:
    total = masking.mask_share + masking.random_share + masking.same_share
    if abs(total - 1) > 1e-6:
        raise UserError(f"config.masking: mask_share + random_share + same_share must be 1, but add up to {total:g}")


def _check_causal(config: Config) -> None:
    if not config.causal:
        return
    if config.model.attention_direction == "bidirectional":
        raise UserError(
            "config.train.objective=causal: a bidirectional model sees the token that it is to predict: set "
            "--config.model.attention_direction=left_to_right"
        )
    if config.masking != MaskingConfig() or any(item.masking_rate for item in config.train.phases):
        raise UserError(
            "config.masking: config.train.objective=causal masks nothing: leave config.masking and the phases' "
            "masking_rate out"
        )


def _check_phases(config: Config) -> None:
    phases = config.train.phases
    if not phases:
        raise UserError(
            "config.train.phases is empty: add a phase, for example bert_jax.config.phase(max_seq_length=128)"
        )
    total = sum(item.fraction for item in phases)
    if abs(total - 1) > 1e-6:
        raise UserError(f"config.train.phases: the fractions must add up to 1, but add up to {total:g}")
    for index, item in enumerate(phases):
        _check_phase(config, item, path=f"config.train.phases[{index}]")


def _check_causal_phase(config: Config, item: PhaseConfig, *, path: str) -> None:
    """Check a phase that turns a masked language model left to right for its steps."""
    if item.objective != "causal":
        return
    if config.model.attention_direction != "bidirectional":
        raise UserError(
            f"{path}.objective=causal is for a bidirectional model: set --config.train.objective=causal instead"
        )
    if config.next_sentence:
        raise UserError(
            f"{path}.objective=causal has no loss of next sentences: set --config.train.objective=mlm, or "
            "--config.data.objective=mlm before the data set is built"
        )
    if item.masking_rate or item.max_predictions_per_seq:
        raise UserError(
            f"{path}.objective=causal masks nothing: leave the phase's masking_rate and max_predictions_per_seq at 0"
        )


def _check_phase(config: Config, item: PhaseConfig, *, path: str) -> None:
    model, train = config.model, config.train
    _check_causal_phase(config, item, path=path)
    if item.max_seq_length > model.max_position_embeddings:
        raise UserError(
            f"{path}.max_seq_length={item.max_seq_length} is longer than the position table: set it to at most "
            f"config.model.max_position_embeddings={model.max_position_embeddings}, or increase that"
        )
    if item.max_predictions_per_seq > item.max_seq_length:
        raise UserError(
            f"{path}.max_predictions_per_seq={item.max_predictions_per_seq} is more than "
            f"max_seq_length={item.max_seq_length}: set it to 0 to compute it from the masking rate"
        )
    for name in _MODEL_FIELDS:
        if getattr(item, name) and model.architecture == "bert":
            raise UserError(
                f"{path}.{name}={getattr(item, name)}: BERT has no such field: leave it out, or choose another "
                "config.model.architecture"
            )
    if item.warmup_steps and not item.learning_rate:
        raise UserError(
            f"{path}.warmup_steps={item.warmup_steps} applies only to a phase with a separate schedule: also set "
            f"{path}.learning_rate, or use config.optimizer.warmup_steps instead"
        )
    batch = item.batch_size or train.batch_size
    if batch % train.gradient_accumulation_steps:
        raise UserError(
            f"config.train.gradient_accumulation_steps={train.gradient_accumulation_steps} does not divide the "
            f"batch of {batch} sequences: choose a divisor of {batch}"
        )
