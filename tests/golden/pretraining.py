"""The pre-training runs whose losses are golden: every recipe with every objective, options that change the step."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from bert_jax.config import (
    Config,
    DataConfig,
    MaskingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PhaseConfig,
    TrainConfig,
    validate,
)
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.distributed import Hosts
from bert_jax.pretrain.dataset import open_data
from bert_jax.pretrain.job import PretrainingJob
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.runs.runtime import silent
from tests.finetune_data import open_runtime
from tests.text_corpus import NAMES, make_documents, write_corpus, write_vocabulary

STEPS = 100
BATCH, LENGTH = 16, 32
DOCUMENTS = 60

Changes = dict[str, dict[str, Any]]

# Group of the config -> fields that differ from `base`.
OBJECTIVES: dict[str, Changes] = {
    "mlm_nsp": {},
    "mlm_sop": {"data": {"objective": "mlm+sop"}},
    "mlm": {"data": {"objective": "mlm"}},
    "left_to_right": {"data": {"objective": "mlm"}, "model": {"attention_direction": "left_to_right"}},
    "packed": {"data": {"pack": True, "max_instances_per_row": 4, "max_instance_length": 16}},
}
TWO_PHASES = (
    PhaseConfig(fraction=0.6, max_seq_length=LENGTH // 2, learning_rate=3e-3, warmup_steps=5),
    PhaseConfig(fraction=0.4, max_seq_length=LENGTH, learning_rate=2e-3, warmup_steps=5, batch_size=BATCH // 2),
)
_MLM = {"data": {"objective": "mlm"}}
OPTIONS: dict[str, tuple[str, Changes]] = {
    "modern_causal": (
        "modern",
        {**_MLM, "model": {"attention_direction": "left_to_right"}, "train": {"objective": "causal"}},
    ),
    "modern_modernbert": (
        "modern",
        {
            **_MLM,
            "model": {
                "architecture": "modernbert",
                "num_hidden_layers": 4,
                "local_attention": 8,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-5,
            },
        },
    ),
    "modern_muon_wsd": ("modern", {**_MLM, "optimizer": {"name": "muon", "schedule": "wsd", "decay_steps": 20}}),
    "modern_stable_adamw": ("modern", {**_MLM, "optimizer": {"name": "stable_adamw", "max_grad_norm": 0.0}}),
    "modern_whole_word": ("modern", {"masking": {"whole_word": True}}),
    "modern_unrolled": ("modern", {"model": {"scan_layers": False, "remat": "dots"}}),
    "modern_lamb": (
        "modern",
        {"optimizer": {"name": "lamb"}, "train": {"gradient_accumulation_steps": 2, "phases": TWO_PHASES}},
    ),
    "original_clip_replicas": ("original", {"optimizer": {"clip_replicas": 4, "max_grad_norm": 0.5}}),
}
RUNS: dict[str, tuple[str, Changes]] = {
    f"{recipe}_{name}": (recipe, changes) for recipe in ("original", "modern") for name, changes in OBJECTIVES.items()
} | OPTIONS


def config_of(name: str, *, learning_rate_factor: float = 1.0, optimizer: str = "") -> Config:
    """Return the config of a run, without its data; the options are changes that a test makes to be noticed."""
    recipe, changes = RUNS[name]
    base: dict[str, Any] = {
        "model": ModelConfig(
            vocab_size=200,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
            initializer_range=0.1,
            dtype="float32",
        ),
        "data": DataConfig(heldout_fraction=0.1, num_workers=1, seed=3, format="sentences"),
        "masking": MaskingConfig(),
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
        "mesh": MeshConfig(data=1),
        "train": TrainConfig(num_steps=STEPS, batch_size=BATCH, phases=(PhaseConfig(max_seq_length=LENGTH),)),
    }
    groups = {group: dataclasses.replace(value, **changes.get(group, {})) for group, value in base.items()}
    rate, train = groups["optimizer"].learning_rate, groups["train"]
    groups["optimizer"] = dataclasses.replace(groups["optimizer"], learning_rate=rate * learning_rate_factor)
    if optimizer:
        groups["optimizer"] = dataclasses.replace(groups["optimizer"], name=optimizer)
    phases = tuple(
        dataclasses.replace(item, learning_rate=item.learning_rate * learning_rate_factor) for item in train.phases
    )
    groups["train"] = dataclasses.replace(train, phases=phases)
    return validate(Config(recipe=recipe, **groups))


def open_job(name: str, *, workdir: Path, **changes: Any) -> PretrainingJob:
    """Return a run on one device, with text, vocabulary and data set made in `workdir`."""
    config = config_of(name, **changes)
    if config.masking.whole_word:  # words of two pieces: each document's marker is two names
        file = write_vocabulary(workdir / "vocabulary", num_markers=0)
        file.write_text(file.read_text() + "".join(f"##{name}\n" for name in NAMES))
    else:
        write_vocabulary(workdir / "vocabulary", num_markers=DOCUMENTS)
    text = write_corpus(workdir / "text", make_documents(DOCUMENTS, max_sentences=12))
    data = dataclasses.replace(config.data, input=str(text), vocab=str(workdir / "vocabulary"))
    config = dataclasses.replace(config, data=data)
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh, devices=jax.devices()[:1]))
    lengths = tuple({phase.max_seq_length: None for phase in program.phases})
    opened = open_data(config, workdir=workdir, max_seq_lengths=lengths, hosts=Hosts(), report=silent)
    return PretrainingJob(program, data=opened, runtime=open_runtime(workdir), params=None)
