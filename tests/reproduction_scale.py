"""A scale of a few steps, as `--scale=tests/reproduction_scale.py` takes it, and the data that it reads."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import default_config, phase
from bert_jax.config.reproduction import ScaleConfig, default_scale, from_config_dict, scaled_task
from bert_jax.reproduction.resolve import Request
from tests.finetune_configs import write_data
from tests.text_corpus import make_documents, write_corpus

TASKS = ("mrpc", "sst2", "ner")


def get_config() -> ConfigDict:
    """Return the config."""
    config = default_scale()
    config.pretraining = _pretraining()
    config.sizes = ("L-1_H-32_A-2", "L-1_H-32_A-1", "L-2_H-32_A-1", "L-2_H-32_A-2", "L-2_H-64_A-2", "L-3_H-64_A-2")
    config.large = "L-3_H-64_A-2"
    config.lstm = "L-1_H-32_A-1"
    few = {"data.max_seq_length": 32, "train.batch_size": 4, "train.num_epochs": 1.0}
    tagger = {"ner.bilstm_hidden_size": 8, "ner.bilstm_layers": 1}
    config.has_cased = False
    config.tasks = (
        *(
            scaled_task(name, file=f"configs/finetune_glue.py:{name}", directory=name, changes=few)
            for name in ("mrpc", "sst2")
        ),
        scaled_task("ner", file="configs/finetune_ner.py", directory="ner", changes=few),
        scaled_task("ner_features", file="configs/finetune_ner.py:last", directory="ner", changes={**few, **tagger}),
    )
    config.replacements = ("mnli=sst2",)
    config.measures = ("perplexity",)
    config.seeds = 2
    config.points = (0.4, 1.0)
    config.notes = ("twenty steps",)
    return config


def _pretraining() -> ConfigDict:
    config = default_config(model="L-2_H-32_A-2")
    config.model.vocab_size = 256
    config.model.dtype = "float32"
    config.model.max_position_embeddings = 64
    config.data.input = "text"
    config.data.heldout_fraction = 0.1
    config.train.phases = (phase(max_seq_length=32),)
    config.train.batch_size = 8
    config.train.num_steps = 20
    config.optimizer.warmup_steps = 2
    config.checkpoint.every = 5
    config.eval.every = 10
    config.eval.max_examples = 16
    config.log.every = 5
    return config


def scale(**changes: Any) -> ScaleConfig:
    """Return the scale with other values of its own fields."""
    config = get_config()
    config.update(changes)
    return from_config_dict(config)


def write_all(folder: Path) -> Path:
    """Write the text and the files of the tasks."""
    write_corpus(folder / "text", make_documents(60, seed=1))
    for task in TASKS:
        write_data(folder / task, task=task)
    return folder


def request(folder: Path, *, seeds: int = 2, **changes: Any) -> Request:
    """Return what is asked for, with data in `folder`."""
    return Request(scale(**changes), "few", folder, seeds)
