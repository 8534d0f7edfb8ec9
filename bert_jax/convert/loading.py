"""Open a model SOURCE, written the same everywhere and found out by looking.

A SOURCE is a workdir of ours, one checkpoint `WORKDIR/checkpoints/STEP`, a HuggingFace folder, or the prefix of a TF1
checkpoint (`DIR/bert_model.ckpt`). Nothing is fetched and no pickle is read.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.convert import tf1
from bert_jax.convert.assemble import assemble, draw
from bert_jax.convert.folder_config import read_config
from bert_jax.convert.huggingface import INDEX, WEIGHTS, canonical, pickle_message, read_tensors
from bert_jax.convert.pretrained import CHECKPOINTS, PretrainedModel
from bert_jax.convert.tokenizer_files import find_tokenizer
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import nest


def load_pretrained(
    path: str | Path,
    *,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> PretrainedModel:
    """Load the model that `path` names.

    `init_missing` names parts or parameters to draw where the source lacks them, `drop` those to leave out.

    Raises:
      UserError: if there is no model, or it is damaged, incomplete or of another kind; the line says what to type.
    """
    try:
        # Absolute, so that "." has a name, and normal, so that "checkpoints/../checkpoints/5" is a checkpoint.
        given = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  keeps links as they are
        given.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{str(path)[:100]!r}: is no path ({error}): name a model") from None
    options: dict[str, Any] = {"init_missing": tuple(init_missing), "drop": tuple(drop)}
    if (prefix := tf1.find_prefix(given)) is not None:
        source = tf1.load_tf1(prefix, **options)
    elif given.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt") and given.is_file():
        raise UserError(pickle_message(given))
    elif is_workdir(given):
        from bert_jax.convert import workdir  # start-up: it brings jax and Orbax, seconds that only a workdir needs

        source = workdir.load_workdir(given, report=report, **options)
    elif (given / "config.json").is_file():
        source = _load_huggingface(given, **options)
    else:
        raise UserError(_nothing_found(given))
    _check_vocabulary(source)
    return source


def is_workdir(path: Path) -> bool:
    """Return whether `path` is a workdir of ours or one of its checkpoints."""
    return (path / CHECKPOINTS).is_dir() or (
        path.name.isdecimal() and path.name.isascii() and path.parent.name == CHECKPOINTS
    )


def initial_params(
    source: PretrainedModel, *, model: ModelConfig, init_missing: Sequence[str] = (), parts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the tree to begin training a `model` from: float32 arrays of exactly `parts` (default: of pre-training).

    Parts of the source that are not wanted are left out. A part it lacks must be named in `init_missing` and is drawn.

    Raises:
      UserError: if the shapes differ (the line names the config fields to type), or a part is missing.
    """
    architecture = architecture_of(model)
    wanted = tuple(parts or architecture.pretraining_parts)
    decisive = ("architecture", *architecture.shape_fields)
    different = [field for field in decisive if getattr(model, field) != getattr(source.model, field)]
    if different:
        typed = " ".join(f"--config.model.{field}={getattr(source.model, field)}" for field in different)
        raise UserError(f"--init={source.path} is a model of another shape than config.model: type {typed}")
    missing = [part for part in wanted if part not in source.params and part not in init_missing]
    if missing:
        raise UserError(
            f"--init={source.path} ({source.architecture}) has no {', '.join(missing)}: type "
            f"--init_missing={','.join(missing)} to begin with fresh ones"
        )
    flat = {
        entry.flax: draw(entry, model=model, num_labels=source.num_labels)
        for entry in architecture.names.of([part for part in wanted if part not in source.params])
    }
    return {part: source.params[part] for part in wanted if part in source.params} | nest(flat)


def model_of(source: PretrainedModel, *, model: ModelConfig) -> ModelConfig:
    """Return `model` (how to compute) with the shape of `source` (what was trained)."""
    fields = ("architecture", *architecture_of(source.model).shape_fields)
    return dataclasses.replace(model, **{field: getattr(source.model, field) for field in fields})


def _load_huggingface(folder: Path, *, init_missing: Sequence[str], drop: Sequence[str]) -> PretrainedModel:
    config = read_config(folder)
    names = architecture_of(config.model).names
    tensors = canonical(read_tensors(folder), names=names, where=folder, drop=drop)
    assembled = assemble(
        tensors,
        side="huggingface",
        model=config.model,
        architecture=config.huggingface_class,
        num_labels=len(config.labels),
        where=folder,
        init_missing=init_missing,
        drop=drop,
    )
    return PretrainedModel(
        path=folder,
        kind="huggingface",
        model=config.model,
        architecture=assembled.architecture,
        params=assembled.params,
        dtype=assembled.dtype,
        tokenizer=find_tokenizer(folder),
        label_fields=config.label_fields,
    )


def _check_vocabulary(source: PretrainedModel) -> None:
    tokenizer = source.tokenizer
    if tokenizer is not None and tokenizer.vocab_size > source.model.vocab_size:
        raise UserError(
            f"{source.path}: its vocabulary has {tokenizer.vocab_size} pieces but its word embeddings only "
            f"{source.model.vocab_size} rows: put the vocabulary that the model was trained with beside it"
        )


def _nothing_found(path: Path) -> str:
    forms = (
        "a workdir, WORKDIR/checkpoints/STEP, a HuggingFace folder (config.json and model.safetensors) or a TF1 prefix "
        "(DIR/bert_model.ckpt beside .index and .data files)"
    )
    if not path.exists():
        return f"{path}: does not exist: name {forms}"
    if path.is_file():
        return f"{path}: is a file: name {forms}"
    weights = [name for name in (WEIGHTS, INDEX) if (path / name).exists()]
    if weights:
        return f"{path}: holds {weights[0]} but no config.json: put the model's config.json beside it"
    return f"{path}: holds no model: name {forms}"
