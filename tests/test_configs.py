"""Every pre-training config loads, validates, and takes two steps a phase, shrunk, on eight devices."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from bert_jax.config import Config, flatten, from_config_dict
from bert_jax.data.loader import PretrainingBatches
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.dataset import open_tokenizer
from bert_jax.pretrain.distillation_program import DistillationProgram
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.types import Rows
from tests.runs import ROOT
from tests.teachers import random_encoder

CONFIGS = {
    "tiny_cpu": "",
    "tiny_cpu:L-3_H-128_A-2": "L-3_H-128_A-2",
    "base_tpu": "",
    "base_tpu:L-3_H-768_A-12": "L-3_H-768_A-12",
    "base_tpu:modernbert-base": "modernbert-base",
    "large_tpu": "paper",
    "large_tpu:lamb_64k": "lamb_64k",
    "colab_tpu": "",
    "colab_tpu:L-6_H-256": "L-6_H-256",
    "encoder_2026": "",
    "encoder_2026:L-6_H-384_A-12": "L-6_H-384_A-12",
    "distill_minilm": "",
    "distill_minilm:L-12_H-384_A-12": "L-12_H-384_A-12",
}


def load(name: str) -> Config:
    path = ROOT / "configs" / f"{name.partition(':')[0]}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    argument = CONFIGS[name]
    return from_config_dict(module.get_config(argument) if argument else module.get_config())


def shrink(config: Config) -> Config:
    """Keep the procedure, make everything small: two steps a phase, rows of 32 and 64, 16 rows a micro-batch."""
    model = dataclasses.replace(
        config.model,
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    batch = 16 * config.train.gradient_accumulation_steps
    phases = tuple(
        dataclasses.replace(
            phase,
            fraction=1 / len(config.train.phases),
            max_seq_length=32 * min(index + 1, 2),  # the lengths of the data set
            max_predictions_per_seq=0,
            batch_size=batch if phase.batch_size else 0,
            warmup_steps=min(phase.warmup_steps, 1),
        )
        for index, phase in enumerate(config.train.phases)
    )
    train = dataclasses.replace(config.train, num_steps=2 * len(phases), batch_size=batch, phases=phases)
    return dataclasses.replace(
        config,
        model=model,
        train=train,
        distill=config.distill and dataclasses.replace(config.distill, relation_heads=8),
        optimizer=dataclasses.replace(
            config.optimizer, warmup_steps=1, decay_steps=min(config.optimizer.decay_steps, 1)
        ),
    )


def program_of(config: Config) -> PretrainingProgram:
    """Return the program on the mesh of the config, with a teacher if it has one."""
    mesh = meshes.make_mesh(config.mesh)
    if config.distill is None:
        return PretrainingProgram(config, mesh=mesh)
    teacher = dataclasses.replace(config.model, hidden_size=64, num_hidden_layers=3)
    program = DistillationProgram(config, mesh=mesh, teacher=teacher)
    program.place_teacher(random_encoder(teacher))
    return program


def test_every_pretraining_config_is_known_here():
    others = ("finetune", "reproduce")
    files = {path.stem for path in (ROOT / "configs").glob("[a-z]*.py") if not path.stem.startswith(others)}
    assert files == {name.partition(":")[0] for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_small_and_opens_with_its_command(name: str):
    text = (ROOT / "configs" / f"{name.partition(':')[0]}.py").read_text()
    command = "distill --teacher=MODEL" if name.startswith("distill") else "train"
    assert re.search(rf"python -m bert_jax\.{command} --config=configs/", text.split('"""')[1])
    assert len([leaf for leaf in flatten(load(name)) if "phases" not in leaf]) <= 85


@pytest.mark.parametrize(
    # The slow tier takes them all.
    "name",
    [pytest.param(name, marks=() if name == "tiny_cpu" else pytest.mark.slow) for name in CONFIGS],
)
def test_a_config_takes_two_steps_a_phase_on_eight_devices(name: str, tiny_dataset: Path):
    config = shrink(load(name))
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=2, fsdp=2, tensor=2))
    program = program_of(config)
    state = program.random_state()
    for phase in program.phases:
        batches = PretrainingBatches(
            tiny_dataset, max_seq_length=phase.max_seq_length, batch_size=phase.batch_size, seed=0
        )
        special = open_tokenizer(batches.info).special_ids
        step = program.train_step(phase, special=special)
        for index in range(phase.start, phase.end):
            rows = Rows(**meshes.to_global(batches[index], mesh=program.mesh))
            state, output = step(state, rows)
            assert bool(output.finite)
    assert int(state.step) == config.train.num_steps
    assert all(np.isfinite(leaf).all() for leaf in jax.device_get(jax.tree.leaves(state.params)))


def test_an_unknown_config_argument_is_one_line():
    CONFIGS["large_tpu:nonsense"] = "nonsense"
    try:
        with pytest.raises(UserError, match="one of paper, lamb_64k"):
            load("large_tpu:nonsense")
    finally:
        del CONFIGS["large_tpu:nonsense"]
