"""The configs that checks run, and a file for `--config`: `run_configs.py:resume`, `run_configs.py:step,PLATFORM,N`."""

from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase

RESUMED_STEPS = 40  # of the run that is killed
_LENGTH = 128  # what the attention kernels of TPUs and GPUs take


def get_config(argument: str) -> ConfigDict:
    """Return the config that `argument` names."""
    name, *rest = argument.split(",")
    return resumed_config() if name == "resume" else step_config(rest[0], devices=int(rest[1]))


def resumed_config() -> ConfigDict:
    """Return the config of the run that is killed: a layer that every chip's kernels take, seconds on a CPU."""
    config: Any = default_config(model="L-1_H-128_A-2")
    config.model.vocab_size = 512
    config.model.max_position_embeddings = _LENGTH
    config.data.heldout_fraction = 0.05
    config.train.phases = (phase(max_seq_length=_LENGTH),)
    config.train.batch_size = 16  # divides over the devices of a host
    config.train.num_steps = RESUMED_STEPS
    config.optimizer.warmup_steps = 10
    config.checkpoint.every = 10
    config.eval.every = 20
    config.eval.max_examples = 16
    config.log.every = 5
    config.log.report = False  # writing a page would disturb the timing of steps
    return config


def step_config(platform: str, *, devices: int) -> ConfigDict:
    """Return the config of the measured step: BERT-Base on accelerators, two layers of width 128 on CPUs."""
    on_cpu = platform == "cpu"
    config: Any = default_config(model="tiny" if on_cpu else "base")
    config.model.scan_layers = False
    config.model.vocab_size = 2048 if on_cpu else 30522
    if on_cpu:
        config.model.dtype = "float32"  # CPUs have no fast bfloat16
    config.train.phases = (phase(max_seq_length=_LENGTH),)
    config.train.batch_size = (4 if on_cpu else 64) * devices
    config.optimizer.warmup_steps = 10
    return config
