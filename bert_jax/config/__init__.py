"""Configs of runs: frozen dataclasses with the paper's values as defaults, presets, validation.

A config file returns an `ml_collections.ConfigDict` made by `default_config`; a command turns it into a frozen
dataclass with `from_config_dict`, which checks every value. Only commands handle a ConfigDict.

This package exports the pre-training config; the fine-tuning config is in `config.finetuning`. Values that mean "not
set": `""` for text, `0` for a count with a computed default, `-1` for "the remaining devices".
"""

from bert_jax.config.builder import flatten, to_json
from bert_jax.config.compiler_options import CompilerOption, parse_compiler_options
from bert_jax.config.data import MIN_SEQ_LENGTH, DataConfig, check_packing, instances_per_row
from bert_jax.config.distillation import DistillationConfig
from bert_jax.config.groups import (
    CheckpointConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    TaskModelConfig,
)
from bert_jax.config.presets import model_preset
from bert_jax.config.pretraining import (
    BERT_EPOCHS,
    CHOICES,
    Config,
    MaskingConfig,
    PhaseConfig,
    TrainConfig,
    default_config,
    from_config_dict,
    from_saved,
    model_at,
    phase,
    phase_ends,
    phase_models,
    validate,
    validate_new,
)

__all__ = [
    "BERT_EPOCHS",
    "CHOICES",
    "MIN_SEQ_LENGTH",
    "CheckpointConfig",
    "CompilerOption",
    "Config",
    "DataConfig",
    "DistillationConfig",
    "EvalConfig",
    "LogConfig",
    "MaskingConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "ProfileConfig",
    "TaskModelConfig",
    "TrainConfig",
    "check_packing",
    "default_config",
    "flatten",
    "from_config_dict",
    "from_saved",
    "instances_per_row",
    "model_at",
    "model_preset",
    "parse_compiler_options",
    "phase",
    "phase_ends",
    "phase_models",
    "to_json",
    "validate",
    "validate_new",
]
