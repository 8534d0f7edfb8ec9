"""Groups of fields shared by the configs of several commands."""

import dataclasses

from bert_jax.config.compiler_options import parse_compiler_options
from bert_jax.config.fields import field
from bert_jax.errors import UserError

RECIPES = ("modern", "original")
REMAT = ("none", "dots", "full")
_REST = (-1, "the remaining devices")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder's shape (HuggingFace's names) and how it is computed. Defaults are BERT-Base."""

    architecture: str = field("bert", doc="Architecture of the encoder, a name in `model/architectures.py`.")
    vocab_size: int = field(
        30522,
        at_least=0,
        unit="tokens",
        doc="Size of the vocabulary, also of one that `train` learns from text; 0, for pre-training only: the data "
        "set's, or 30522 for one that is learned.",
    )
    hidden_size: int = field(768, above=0, doc="Width of the encoder.")
    num_hidden_layers: int = field(12, above=0, unit="layers", doc="Depth of the encoder.")
    num_attention_heads: int = field(12, above=0, unit="heads", doc="Attention heads per layer.")
    intermediate_size: int = field(3072, above=0, doc="Width of the feed-forward layer.")
    # gelu_new as in google-research/bert modeling.py
    hidden_act: str = field(
        "gelu_new",
        choices=("gelu_new", "gelu", "relu"),
        doc="Activation; gelu_new is the tanh form of the original, gelu the erf form.",
    )
    hidden_dropout_prob: float = field(0.1, at_least=0, below=1, doc="Dropout of hidden states.")
    attention_probs_dropout_prob: float = field(0.1, at_least=0, below=1, doc="Dropout of attention probabilities.")
    max_position_embeddings: int = field(
        512, above=0, unit="tokens", doc="Length of the position table; without one, the longest sequence."
    )
    type_vocab_size: int = field(2, above=0, unit="segments", doc="Size of the segment table.", architecture="bert")
    initializer_range: float = field(0.02, above=0, doc="Standard deviation of initial weights.")
    layer_norm_eps: float = field(1e-12, above=0, doc="Epsilon of layer normalization.")
    attention_direction: str = field(
        "bidirectional",
        choices=("bidirectional", "left_to_right", "right_to_left"),
        doc="Direction of attention; left_to_right is the ablation of Table 5, right_to_left is for LSTMs.",
    )
    global_attn_every_n_layers: int = field(
        3,
        above=0,
        unit="layers",
        doc="Distance between layers with global attention, the first of which is layer 0.",
        architecture="modernbert",
    )
    local_attention: int = field(
        128,
        at_least=2,
        unit="tokens",
        doc="Window of the other layers: half of it to each side.",
        architecture="modernbert",
    )
    global_rope_theta: float = field(
        160_000.0,
        above=0,
        doc="Base of the rotary positions in layers with global attention.",
        architecture="modernbert",
    )
    local_rope_theta: float = field(
        10_000.0, above=0, doc="Base of the rotary positions in layers with a window.", architecture="modernbert"
    )
    classifier_pooling: str = field(
        "cls",
        choices=("cls", "mean"),
        doc="What a classifier of sequences reads: the state of [CLS], or the mean over the tokens.",
        architecture="modernbert",
    )
    dtype: str = field(
        "bfloat16", choices=("bfloat16", "float32"), doc="Data type of the computation; parameters are always float32."
    )
    attention_implementation: str = field(
        "auto", choices=("auto", "reference", "pallas"), doc="Attention kernel; auto picks the fastest available."
    )
    scan_layers: bool = field(
        True, doc="Scan over layers: one compiled layer for all; false unrolls them: slower to compile, faster to run."
    )
    remat: str = field(
        "none", choices=REMAT, doc="What the backward pass recomputes: nothing, all but matmuls (dots), or everything."
    )


@dataclasses.dataclass(frozen=True)
class TaskModelConfig(ModelConfig):
    """The encoder in fine-tuning: whether it is trained, and what is put between it and the task's head."""

    bilstm_layers: int = 0
    frozen_encoder: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule (paper, A.2)."""

    name: str = field(
        "auto",
        choices=("auto", "bert_adam", "adamw", "lamb", "stable_adamw", "muon"),
        doc="Optimizer; auto is bert_adam under the original recipe, adamw under the modern one. muon is for the "
        "matrices of the layers, adamw for the rest.",
    )
    learning_rate: float = field(1e-4, at_least=0, doc="Peak learning rate of the schedule.")
    warmup_steps: int = field(10_000, at_least=0, unit="steps", doc="Steps of linear warm-up to the peak.")
    schedule: str = field(
        "linear",
        choices=("linear", "wsd"),
        doc="After the warm-up: linear decays to 0 at the end; wsd (warm-up, stable, decay) stays at the peak until "
        "the last decay_steps.",
    )
    decay_steps: int = field(
        0,
        at_least=0,
        unit="steps",
        doc="Steps of the decay at the end of schedule=wsd, by 1 - sqrt of the fraction done; 0: none, to be "
        "continued.",
    )
    beta1: float = field(0.9, at_least=0, below=1, doc="Decay of the first moment.")
    beta2: float = field(0.999, at_least=0, below=1, doc="Decay of the second moment.")
    epsilon: float = field(1e-6, above=0, doc="Term added to the denominator of the update.")
    weight_decay: float = field(0.01, at_least=0, doc="Decoupled weight decay, multiplied by the learning rate.")
    max_grad_norm: float = field(1.0, at_least=0, doc="Global norm to which gradients are clipped; 0: no clipping.")
    # The original clips per TPU core: 32 parts for the paper's Base, 128 for its Large.
    clip_replicas: int = field(
        1,
        above=0,
        unit="parts",
        doc="Parts of a batch whose gradients are clipped separately, then averaged; 1: the whole batch.",
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis (`parallel/axes.py`), one of which may be -1 for the remaining devices.

    Also how the compiler is to treat the communication between them (`parallel/compiler_options.py`).
    """

    data: int = field(-1, at_least=1, also=_REST, unit="devices", doc="Data-parallel replicas.")
    fsdp: int = field(
        1, at_least=1, also=_REST, unit="devices", doc="Devices that shard both the batch and the parameters (FSDP)."
    )
    tensor: int = field(
        1, at_least=1, also=_REST, unit="devices", doc="Devices that split each layer (tensor parallelism)."
    )
    slices: int = field(
        1,
        at_least=1,
        also=_REST,
        unit="slices",
        doc="TPU slices connected by the data-center network; parameters are replicated across slices.",
    )
    _: dataclasses.KW_ONLY
    compiler_options: str = field(
        "auto",
        doc="Compiler options of the steps: auto, the table of the chip; none; NAME=VALUE,...; or auto,NAME=VALUE,...",
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often to save and which checkpoints to keep."""

    every: int = field(5_000, above=0, unit="steps", doc="Steps between checkpoints.")
    keep_latest: int = field(3, above=0, unit="checkpoints", doc="Number of latest checkpoints to keep.")
    keep_every: int = field(
        0, at_least=0, unit="steps", doc="Also keep every checkpoint at a multiple of N steps; 0: none."
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How often to evaluate during training, and on how much held-out data."""

    every: int = field(10_000, above=0, unit="steps", doc="Steps between evaluations.")
    max_examples: int = field(8_192, above=0, unit="examples", doc="Held-out examples to evaluate on.")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often to log, and which extra writers to use; metrics.jsonl and the console are always written."""

    every: int = field(100, above=0, unit="steps", doc="Steps between log lines.")
    tensorboard: bool = field(False, doc="Write TensorBoard files to WORKDIR/tb.")
    wandb: bool = field(False, doc="Log to Weights & Biases.")
    report: bool = field(
        True, doc="Draw WORKDIR/report.html at each evaluation (extra report), with examples of filled masks."
    )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Which steps to profile."""

    steps: str = field("", doc='"10:15" traces steps 10 to 14 into WORKDIR/profile; empty: none.')


def check_mesh(mesh: MeshConfig) -> None:
    """Check the axes against each other.

    Raises:
      UserError: if more than one axis is -1, or the compiler options cannot be read.
    """
    parse_compiler_options(mesh.compiler_options, table={})
    names = [item.name for item in dataclasses.fields(mesh) if isinstance(getattr(mesh, item.name), int)]
    if [getattr(mesh, name) for name in names].count(-1) > 1:
        raise UserError(f"config.mesh: only one of {', '.join(names)} can be -1 (the remaining devices)")


def check_profile(profile: ProfileConfig) -> None:
    """Check the format of `steps`.

    Raises:
      UserError: unless it is empty or FIRST:END.
    """
    first, _, end = profile.steps.partition(":")
    if profile.steps and not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise UserError(f"config.profile.steps={profile.steps!r}: write it as FIRST:END, for example 10:15")
