"""Share what the tests of text embeddings begin with: pairs of short texts, and the program of a tiny embedder."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.config import MeshConfig
from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.finetuning.embed_settings import with_model_settings
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.initial import task_model
from bert_jax.finetuning.packing import packed_batch, row_shape
from bert_jax.finetuning.program import TaskProgram
from bert_jax.finetuning.settings import RunSettings, step_settings
from bert_jax.parallel import mesh as meshes
from bert_jax.tasks.interface import Split
from tests.finetune_data import BAD, GOOD, PLAIN, tokenizer, write_jsonl

WORDS = (*GOOD, *BAD, *PLAIN)


def records(count: int, *, form: str, seed: int = 0, negatives: int = 2) -> list[dict[str, Any]]:
    """Return records of distinct texts of 1 to 8 words; the second text of a pair has the words of the first."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()

    def text() -> str:
        while (made := " ".join(rng.choice(WORDS, int(rng.integers(2, 9))))) in seen:
            pass
        seen.add(made)
        return made

    for _ in range(count):
        row: dict[str, Any] = {"anchor": text(), "positive": text()}
        if form == "triplets":
            row["negative"] = [text() for _ in range(negatives)]
        if form == "scores":
            row["score"] = float(rng.integers(0, 6))
        rows.append(row)
    return rows


def write_embed_data(folder: Path, *, form: str, count: int = 12, **options: Any) -> Path:
    """Write train and dev files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", records(count, form=form, **options))
    write_jsonl(folder / "dev.jsonl", records(count, form="pairs" if form == "texts" else form, seed=1))
    return folder


def embed_config(folder: Path, *, form: str, **sections: Any) -> FinetuneConfig:
    """Return the config of an embedder, without clipping of its gradients."""
    fields: dict[str, Any] = {
        "data": {"directory": str(folder), "max_seq_length": 32},
        "embed": {"form": form},
        "train": {"batch_size": 12, "num_epochs": 1.0},
        "optimizer": {"learning_rate": 1e-3, "max_grad_norm": 1e6},
    }
    for name, changes in sections.items():
        fields[name] = {**fields.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return from_config_dict({"task": "embed", **fields})


def open_embedder(
    config: FinetuneConfig, source: PretrainedModel, *, shape: tuple[int, int, int] = (1, 1, 1)
) -> tuple[TaskProgram, Split]:
    """Return the program on a mesh of the first devices, and the train set."""
    config = with_model_settings(config, pretrained=source)
    task = open_config_task(config)
    split = task.load("train", tokenizer=tokenizer())
    rows = row_shape([split.features], batch_size=config.train.batch_size)
    data, fsdp, tensor = shape
    mesh = meshes.make_mesh(MeshConfig(data, fsdp, tensor), devices=jax.devices()[: data * fsdp * tensor])
    return TaskProgram(config, model=task_model(source, config=config), task=task, shape=rows, mesh=mesh), split


def loss_and_gradients(program: TaskProgram, split: Split, params: Any) -> tuple[float, Any]:
    """Return the loss of all examples of `split` as one batch, and its gradients, from one training step.

    The first moments after one step are the gradients times 1 - beta1, if nothing is clipped.
    """
    features = split.features
    batch = packed_batch(
        features, range(features.num_examples), shape=program.shape, kind=program.kind, multiple=program.row_multiple
    )
    fixed = step_settings(RunSettings(1, 1e-3, 1.0, 0), num_steps=1, warmup_fraction=0.0)
    params = {"encoder": params["encoder"]}
    state, output = program.train_step(program.initial_state(params), program.to_device(batch.arrays), fixed)
    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    gradients = jax.tree.map(lambda m: np.asarray(m) / np.float32(1 - program.config.optimizer.beta1), moments.mu)
    return float(output.means["loss"].total), gradients
