"""Define what a run is made of, once: frozen dataclasses with the paper's values as defaults, presets, validation.

A config file returns an `ml_collections.ConfigDict` made by `default_config`; a command turns it into the frozen
`Config` by `from_config_dict`, which is the only place that checks values. Nothing below a command sees a ConfigDict.

Empty means "not given": `""` for text, `0` for a count that has a computed default, `-1` for "the rest".
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from bert_jax.config.ranges import validate_ranges
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hold the encoder's shape (HuggingFace's names) and how it is computed. Defaults are BERT-Base."""

    architecture: str = "bert"  # one of `model/architectures.py`
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_new"  # the tanh form of google-research/bert modeling.py; "gelu" is the erf form
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    attention_direction: str = "bidirectional"  # or "left_to_right", the ablation of Table 5
    dtype: str = "bfloat16"  # of the computation; parameters are always float32
    attention_implementation: str = "auto"
    scan_layers: bool = True  # one compiled layer run L times; False unrolls: slower to compile, faster to run
    remat: str = "none"  # what the backward pass recomputes: "none", "dots" (all but matmuls), "full"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Say where text, vocabulary and data set come from, and how instances are made."""

    directory: str = ""  # a data set made by prepare; empty: built from `input` in WORKDIR/data
    input: str = ""  # files, globs, "tfds:NAME" or "embedded" (the documentation inside the installed Python)
    format: str = "auto"
    language: str = "en"  # for sentence splitting, ISO 639-1
    vocab: str = ""  # vocab.txt, a folder that holds one, or a SentencePiece .model; empty: learned from `input`
    do_lower_case: bool = True  # for a learned vocabulary, and to check a given one
    objective: str = "mlm+nsp"
    short_seq_prob: float = 0.1
    pack: bool = False  # several instances in a row, none of which sees another: less padding, so fewer rows
    max_instances_per_row: int = 0  # of packed rows; 0: max_seq_length / 32, at least 4
    max_instance_length: int = 0  # of packed rows; 0: instances may be as long as a row
    heldout_fraction: float = 0.01  # of the documents
    num_workers: int = 0  # 0: one a core
    seed: int = 12345  # the original's (create_pretraining_data.py); a data set serves every training seed


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Hold the masking procedure of section 3.1; the rows of Appendix C.2 are values of the three shares."""

    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    same_share: float = 0.1
    whole_word: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Hold the optimiser and its schedule (A.2)."""

    name: str = "auto"  # auto: bert_adam under the original recipe, adamw under the modern one; or lamb
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    # Parts of a batch that are clipped one by one, and then averaged, as each TPU core of the original did (32 for the
    # paper's Base, 128 for its Large); 1 clips the gradient of the whole batch.
    clip_replicas: int = 1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Hold the number of devices along each mesh axis; one of them may be -1, the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """Hold one part of the schedule: a share of the steps at one sequence length."""

    fraction: float = 1.0
    max_seq_length: int = 128
    max_predictions_per_seq: int = 0  # of an instance; 0: the rate times the length, rounded up: 20 at 128, 77 at 512
    batch_size: int = 0  # 0: train.batch_size
    learning_rate: float = 0.0  # 0: the one schedule goes on; else warm-up and decay start anew in this phase
    warmup_steps: int = 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Hold the length and the batch of the whole schedule."""

    num_steps: int = 1_000_000
    batch_size: int = 256  # global
    gradient_accumulation_steps: int = 1
    max_nonfinite_steps: int = 0  # steps with a loss or gradients not finite to pass over; at one more the run stops
    phases: tuple[PhaseConfig, ...] = (
        PhaseConfig(fraction=0.9, max_seq_length=128),
        PhaseConfig(fraction=0.1, max_seq_length=512),
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Say how often to save and what to keep."""

    every: int = 5_000
    keep_latest: int = 3
    keep_every: int = 0  # additionally every so many steps, for ever; 0: none


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Say how often and on how much held-out data to evaluate inside the loop."""

    every: int = 10_000
    max_examples: int = 8_192


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Say how often to log and to which extra writers; metrics.jsonl and the console are always written."""

    every: int = 100
    tensorboard: bool = False
    wandb: bool = False


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Say which steps to trace for the profiler."""

    steps: str = ""  # "10:15" traces steps 10 to 14 into WORKDIR/profile


@dataclasses.dataclass(frozen=True)
class Config:
    """Hold everything a pre-training run is made of."""

    seed: int = 0
    recipe: str = "modern"  # or "original", bug for bug: see README, "Recipes"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)


CHOICES: Mapping[str, tuple[str, ...]] = {
    "recipe": ("modern", "original"),
    "model.hidden_act": ("gelu_new", "gelu", "relu"),
    "model.attention_direction": ("bidirectional", "left_to_right"),
    "model.dtype": ("bfloat16", "float32"),
    "model.attention_implementation": ("auto", "reference", "pallas"),
    "model.remat": ("none", "dots", "full"),
    "data.format": ("auto", "prose", "sentences", "jsonl", "wikiextractor"),
    "data.objective": ("mlm", "mlm+nsp", "mlm+sop"),
    "optimizer.name": ("auto", "bert_adam", "adamw", "lamb"),
}

# The released family (google-research/bert README) by its usual names: layers, hidden size, heads.
MIN_SEQ_LENGTH = 8  # [CLS] A [SEP] B [SEP] with two tokens a side and one to spare

_FAMILY = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}


def model_preset(name: str) -> ModelConfig:
    """Return the shape named `tiny`, `mini`, `small`, `medium`, `base`, `large`, or like `L-6_H-768_A-3`.

    The second form names any of the released small models and the rows of the paper's Table 6.

    Raises:
      UserError: for another name.
    """
    match = re.fullmatch(r"L-(\d+)_H-(\d+)_A-(\d+)", name)
    if name not in _FAMILY and not match:
        raise UserError(f"model preset {name!r}: choose one of {', '.join(_FAMILY)}, or write it like L-6_H-768_A-12")
    layers, hidden, heads = _FAMILY[name] if not match else map(int, match.groups())
    return ModelConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
    )


def default_config(*, model: str = "base") -> ConfigDict:
    """Return the paper's procedure as a ConfigDict for a config file to change, with the model preset `model`."""
    return ConfigDict(dataclasses.asdict(dataclasses.replace(Config(), model=model_preset(model))))


def phase(**fields: Any) -> ConfigDict:
    """Return one entry of `train.phases`; the fields are those of `PhaseConfig`."""
    return ConfigDict(dataclasses.asdict(PhaseConfig(**fields)))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> Config:
    """Turn what a config file and the command line gave into a validated `Config`.

    Raises:
      UserError: for an unknown field, a wrong type or an impossible combination; the line names the field.
    """
    return validate(_build(Config, config, path=""))


def instances_per_row(data: DataConfig, *, max_seq_length: int) -> int:
    """Return S, the most instances that a row of `max_seq_length` holds.

    The default lets rows be full wherever instances are 32 tokens long on average; at 512 English prose needs 4 to 6.
    """
    if not data.pack:
        return 1
    return data.max_instances_per_row or max(4, max_seq_length // 32)


def check_packing(data: DataConfig) -> None:
    """Check the fields about packing against each other.

    Raises:
      UserError: naming the field and what to type.
    """
    for name in ("max_instances_per_row", "max_instance_length"):
        value = getattr(data, name)
        if value < 0:
            raise UserError(f"data.{name}={value}: must not be negative")
        if value and not data.pack:
            raise UserError(
                f"data.{name}={value} is about packed rows: set data.pack=True (prepare --pack), or leave it 0"
            )
    if data.max_instances_per_row == 1:
        raise UserError("data.max_instances_per_row=1 packs nothing: set at least 2, or 0 for the default")
    if 0 < data.max_instance_length < MIN_SEQ_LENGTH:
        raise UserError(f"data.max_instance_length={data.max_instance_length}: must be at least {MIN_SEQ_LENGTH}, or 0")


def to_json(config: Config) -> str:
    """Return `config` as indented JSON, for `WORKDIR/config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def flatten(config: Config) -> dict[str, Any]:
    """Return the leaves by dotted name, `{"model.hidden_size": 768, ...}`; phases as `train.phases[0].fraction`."""
    leaves: dict[str, Any] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for name, child in value.items():
                visit(child, f"{path}.{name}" if path else name)
        elif isinstance(value, (tuple, list)):
            for index, child in enumerate(value):
                visit(child, f"{path}[{index}]")
        else:
            leaves[path] = value

    visit(dataclasses.asdict(config), "")
    return leaves


def unknown_field_message(path: str, known: Sequence[str]) -> str:
    """Return the line for a field that does not exist, with the nearest names that do."""
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.5)
    leaf = path.rpartition(".")[2]
    near += [name for name in known if name.rpartition(".")[2] == leaf and name not in near]
    hint = (
        f"did you mean {' or '.join(f'config.{name}' for name in near)}?" if near else f"there are: {', '.join(known)}"
    )
    return f"config.{path}: no such field; {hint}"


def _build(cls: Any, raw: Any, *, path: str) -> Any:
    """Build the dataclass `cls` from a mapping, checking names and types by the annotations."""
    if dataclasses.is_dataclass(raw) and isinstance(raw, cls):
        return raw
    if isinstance(raw, ConfigDict):  # `to_dict` does not look inside tuples
        raw = raw.to_dict()
    if not isinstance(raw, Mapping):
        raise UserError(f"config.{path}: expected a group of fields, got {raw!r}")
    hints = get_type_hints(cls)
    for name in raw:
        if name not in hints:
            full = f"{path}.{name}" if path else name
            raise UserError(unknown_field_message(full, [f"{path}.{n}" if path else n for n in hints]))
    values = {}
    for name, value in raw.items():
        values[name] = _convert(hints[name], value, path=f"{path}.{name}" if path else name)
    return cls(**values)


def _convert(hint: Any, value: Any, *, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path=path)
    if get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"config.{path}: expected a list, got {value!r}")
        return tuple(_convert(get_args(hint)[0], item, path=f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f"config.{path}: expected {hint.__name__}, got {value!r} ({type(value).__name__})")
    return value


def validate(config: Config) -> Config:
    """Check every value and combination that can be checked without devices or data; return `config`.

    Raises:
      UserError: for the first violation, naming the field and what to type.
    """
    leaves = flatten(config)
    for path, choices in CHOICES.items():
        if leaves[path] not in choices:
            raise UserError(f"config.{path}={leaves[path]!r}: choose one of {', '.join(choices)}")
    validate_ranges(leaves)
    check_packing(config.data)
    model, train, masking = config.model, config.train, config.masking
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
    _validate_attention(config)
    shares = masking.mask_share + masking.random_share + masking.same_share
    if abs(shares - 1) > 1e-6:
        raise UserError(f"config.masking: mask_share + random_share + same_share must be 1, they add up to {shares:g}")
    if not train.phases:
        raise UserError("config.train.phases is empty: give at least one bert_jax.config.phase(max_seq_length=128)")
    total = sum(phase.fraction for phase in train.phases)
    if abs(total - 1) > 1e-6:
        raise UserError(f"config.train.phases: the fractions must add up to 1, they add up to {total:g}")
    for index, item in enumerate(train.phases):
        field = f"config.train.phases[{index}]"
        if item.max_seq_length > model.max_position_embeddings:
            raise UserError(
                f"{field}.max_seq_length={item.max_seq_length} is longer than the position table: set it to at most "
                f"config.model.max_position_embeddings={model.max_position_embeddings}, or make that larger"
            )
        if item.max_predictions_per_seq > item.max_seq_length:
            raise UserError(
                f"{field}.max_predictions_per_seq={item.max_predictions_per_seq} is more than "
                f"max_seq_length={item.max_seq_length}: set it to 0 to have it computed"
            )
        if item.max_seq_length < MIN_SEQ_LENGTH:
            raise UserError(f"{field}.max_seq_length={item.max_seq_length}: must be at least {MIN_SEQ_LENGTH}")
        if item.warmup_steps and not item.learning_rate:
            raise UserError(
                f"{field}.warmup_steps={item.warmup_steps} belongs to a schedule of its own: set {field}.learning_rate "
                "too, or only config.optimizer.warmup_steps"
            )
        batch = item.batch_size or train.batch_size
        if batch % train.gradient_accumulation_steps:
            raise UserError(
                f"config.train.gradient_accumulation_steps={train.gradient_accumulation_steps} does not divide the "
                f"batch of {batch} rows: choose a divisor of it"
            )
    if config.recipe == "original" and config.optimizer.name == "adamw":
        raise UserError(
            "config.optimizer.name=adamw contradicts config.recipe=original: choose auto, bert_adam or lamb"
        )
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        raise UserError("config.mesh: only one of data, fsdp, tensor can be -1 (the rest of the devices)")
    first, _, end = config.profile.steps.partition(":")
    if config.profile.steps and not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise UserError(f"config.profile.steps={config.profile.steps!r}: write it as FIRST:END, for example 10:15")
    return config


def _validate_attention(config: Config) -> None:
    """Check that the kernel that is asked for takes this model and these lengths."""
    model, field = config.model, "config.model.attention_implementation"
    if model.attention_implementation == "pallas":
        heads = model.num_attention_heads
        if model.hidden_size != 64 * heads or heads % 2:
            raise UserError(
                f"{field}=pallas takes an even number of heads of 64, not {heads} heads of "
                f"{model.hidden_size // heads}: set {field}=auto"
            )
        for item in config.train.phases:
            if item.max_seq_length % 128 or item.max_seq_length > 512:
                raise UserError(
                    f"{field}=pallas takes lengths of 128, 256, 384 and 512, not {item.max_seq_length}: set "
                    f"{field}=auto, or another max_seq_length"
                )
