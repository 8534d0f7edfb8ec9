"""What the shared cases, small inputs that users brought, become: read in this process, without a command."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_data import tokenizer

from bert_jax.config import DataConfig
from bert_jax.config.task_options import DataOptions, NerOptions, OwnOptions
from bert_jax.convert.folder_config import FolderConfig, read_config
from bert_jax.convert.huggingface import to_tensors, write_tensors
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.builder import describe_inputs
from bert_jax.errors import UserError
from bert_jax.finetuning.task_data import load_task_data
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import nest
from bert_jax.tasks.registry import open_task

ROOT = Path(__file__).resolve().parents[1]


def folder_of_cases() -> Path:
    """Return the folder of the cases, or skip with the reason."""
    data = os.environ.get("BERT_JAX_TEST_DATA")
    path = (Path(data).parent if data else ROOT.parent / "shared") / "cases"
    if not path.is_dir():
        pytest.skip(f"needs the shared cases (looked in {path})")
    return path


def outcome(read: Callable[[], str], *, folder: Path) -> str:
    """Return what was read, or the one line of the error, without the folder's name."""
    try:
        text = read()
    except UserError as error:
        text = f"error: {error}"
    return text.replace(f"{folder}/", "").replace(str(folder), "")


def corpus(path: Path, **settings: Any) -> str:
    """Return what `prepare --dry_run` says of an input."""
    lines: list[str] = []
    config = DataConfig(input=str(path), num_workers=1, **settings)
    describe_inputs(config, out="", max_seq_lengths=(64,), report=lines.append)
    return "\n".join(lines)


def task(
    name: str, folder: Path, *, own: OwnOptions | None = None, ner: NerOptions | None = None, length: int = 64
) -> str:
    """Return the examples of a task's folder: counts, labels, notes, and the first training example."""
    opened = open_task(name, data=DataOptions(directory=str(folder), max_seq_length=length), own=own, ner=ner)
    data = load_task_data(opened, tokenizer=tokenizer(), predict_test=False)
    example = json.dumps(data.train.examples[0], default=_fields, ensure_ascii=False)
    return "\n".join([data.describe(), f"labels {', '.join(opened.labels)}", *data.notes(opened), example])


def _fields(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else vars(value)


def model(folder: Path, copy: Path) -> tuple[str, PretrainedModel | None]:
    """Return what is said while a folder is loaded for an export, and the model. Missing weights become random ones."""
    lines: list[str] = []
    if not any(folder.rglob("*.safetensors")) and not any(folder.rglob("*.bin")) and (copy / "config.json").is_file():
        try:
            _write_weights(copy, read_config(copy))
        except UserError as error:
            return f"error: {error}", None
    try:
        loaded = load_pretrained(copy, report=lines.append)
    except UserError as error:
        return f"error: {error}", None
    return "\n".join([*lines, f"{loaded.architecture}, labels {', '.join(loaded.labels)}"]), loaded


def _write_weights(folder: Path, config: FolderConfig) -> None:
    architecture = architecture_of(config.model)
    name = config.huggingface_class or architecture.huggingface.class_for("ForMaskedLM")
    generator = np.random.default_rng(0)
    flat = {
        entry.flax: generator.standard_normal(entry.shape(config.model, num_labels=len(config.labels) or 2), np.float32)
        for entry in architecture.names.of(architecture.huggingface.classes[name])
    }
    source = PretrainedModel(folder, "huggingface", config.model, name, nest(flat), "float32", None)
    write_tensors(folder, to_tensors(source, dtype="float32"), max_shard_bytes=1 << 40)
