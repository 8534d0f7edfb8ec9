"""What runs are made of: frozen dataclasses with the paper's values as defaults, presets, validation.

A config file returns an `ml_collections.ConfigDict` made by `default_config`; a command turns it into a frozen
dataclass by `from_config_dict`, which checks every value. Nothing below a command sees a ConfigDict.

This package has the names of pre-training; those of fine-tuning are in `config.finetuning`. Empty means "not given":
`""` for text, `0` for a count that has a computed default, `-1` for "the rest".
"""

from bert_jax.config.builder import flatten, to_json
from bert_jax.config.data import MIN_SEQ_LENGTH, DataConfig, check_packing, instances_per_row
from bert_jax.config.groups import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
)
from bert_jax.config.presets import model_preset
from bert_jax.config.pretraining import (
    CHOICES,
    Config,
    MaskingConfig,
    PhaseConfig,
    TrainConfig,
    default_config,
    from_config_dict,
    from_saved,
    phase,
    validate,
)

__all__ = [
    "CHOICES",
    "MIN_SEQ_LENGTH",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LogConfig",
    "MaskingConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "ProfileConfig",
    "TrainConfig",
    "check_packing",
    "default_config",
    "flatten",
    "from_config_dict",
    "from_saved",
    "instances_per_row",
    "model_preset",
    "phase",
    "to_json",
    "validate",
]
