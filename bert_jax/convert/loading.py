"""Loading of a model from a path, whose format is detected.

A path is a workdir, one of its checkpoints (`WORKDIR/checkpoints/STEP`), a HuggingFace folder, or the prefix of a TF1
checkpoint (`DIR/bert_model.ckpt`), on this machine or in a bucket (gs://). Nothing else is downloaded, and
no pickle is read.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.convert import tf1
from bert_jax.convert.assemble import assemble, random_parameter
from bert_jax.convert.downloads import downloaded_model
from bert_jax.convert.folder_advice import FORMATS, has_weights, no_model, pickle_message
from bert_jax.convert.folder_config import check_model_type, read_config
from bert_jax.convert.huggingface import canonical, read_tensors
from bert_jax.convert.pretrained import CHECKPOINTS, PretrainedModel
from bert_jax.convert.sentence_transformers import embedding_settings, transformer_folder
from bert_jax.convert.tokenizer_files import find_tokenizer, read_max_length
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.limits import check_address_space
from bert_jax.locations import is_bucket, refuse_url
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import nest


def load_pretrained(
    path: str | Path,
    *,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    exact: bool = True,
    report: Callable[[str], None] = print,
) -> PretrainedModel:
    """Load the model at `path`.

    `init_missing` names parts or parameters to initialize randomly if the model lacks them, `drop` those to ignore.
    `exact` is for exports: the result has all parts of a HuggingFace class and no others. Without it, heads of the
    class may be missing, and an unused pooler is kept. `report` is called with each line about what is skipped or
    randomly initialized.

    Raises:
      UserError: if there is no model, or it is damaged, incomplete or unsupported. The message says what to type.
    """
    check_address_space()
    if is_bucket(path):
        path = downloaded_model(os.fspath(path), report=report)
    refuse_url(os.fspath(path), name="model")
    try:
        # Absolute, so that "." has a name, and normalized, so that "checkpoints/../checkpoints/5" is a checkpoint.
        absolute = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  keeps symbolic links
        absolute.exists()
        str(absolute).encode()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{str(path)[:100]!r} is not a path ({error}): give {FORMATS}") from None
    options: dict[str, Any] = {"init_missing": tuple(init_missing), "drop": tuple(drop), "exact": exact}
    options["report"] = report
    if (prefix := tf1.find_prefix(absolute)) is not None:
        source = tf1.load_tf1(prefix, **options)
    elif absolute.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt") and absolute.is_file():
        raise UserError(pickle_message(absolute))
    elif is_workdir(absolute):
        from bert_jax.convert import workdir  # imports jax and Orbax, which take seconds and only a workdir needs

        source = workdir.load_workdir(absolute, **options)
    else:
        folder = transformer_folder(absolute)
        if folder != absolute:
            report(f"{path}: a sentence-transformers folder, whose model is in {folder.name}/")
        _check_links(folder)
        if not (folder / "config.json").is_file():
            raise no_model(folder)
        if not has_weights(folder):
            check_model_type(folder)  # another type is the more important problem
            raise no_model(folder)
        source = _load_huggingface(folder, **options)
    _check_vocabulary(source)
    _report_random(source, report=report)
    return source


def _check_links(folder: Path) -> None:
    """Check that no file of a folder is a link that leads nowhere: a tokenizer without its config changes its ids."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.is_symlink() and not file.exists():
            raise UserError(
                f"{file}: is a link to {file.readlink()}, which does not exist: put the file there, or download the "
                "model again"
            )


def _report_random(source: PretrainedModel, *, report: Callable[[str], None]) -> None:
    if not source.random:
        return
    encoder = [name for name in source.random if name.partition("/")[0] == "encoder"]
    warning = "WARNING: parts of the encoder are random, so the model's outputs mean nothing; " if encoder else ""
    report(f"{source.path}: {warning}{source.randomness}")


def is_workdir(path: Path) -> bool:
    """Return whether `path` is a workdir or one of its checkpoints."""
    return (path / CHECKPOINTS).is_dir() or (
        path.name.isdecimal() and path.name.isascii() and path.parent.name == CHECKPOINTS
    )


def initial_params(
    source: PretrainedModel, *, model: ModelConfig, init_missing: Sequence[str] = (), parts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the initial parameters of a `model` from `source`: float32 arrays of `parts` (default: of pre-training).

    Other parts of `source` are ignored. A part that it lacks must be named in `init_missing` and is initialized
    randomly.

    Raises:
      UserError: if the shapes differ (the message gives the config fields to type), or a part is missing.
    """
    architecture = architecture_of(model)
    parts = tuple(parts or architecture.pretraining_parts)
    shape_fields = ("architecture", *architecture.shape_fields)
    differing = [field for field in shape_fields if getattr(model, field) != getattr(source.model, field)]
    if differing:
        flags = " ".join(f"--config.model.{field}={getattr(source.model, field)}" for field in differing)
        raise UserError(f"--init={source.path} has other shapes than config.model: type {flags}")
    missing = [part for part in parts if part not in source.params and part not in init_missing]
    if missing:
        raise UserError(
            f"--init={source.path} ({source.architecture}) has no {', '.join(missing)}: type "
            f"--init_missing={','.join(missing)} for a random initialization"
        )
    flat = {
        entry.flax: random_parameter(entry, model=model, num_labels=source.num_labels)
        for entry in architecture.names.of([part for part in parts if part not in source.params])
    }
    return {part: source.params[part] for part in parts if part in source.params} | nest(flat)


def model_of(source: PretrainedModel, *, model: ModelConfig) -> ModelConfig:
    """Return `model` with the architecture and shapes of `source`. Other fields say how to compute, and are kept."""
    return shaped_like(source.model, model=model)


def shaped_like(other: ModelConfig, *, model: ModelConfig) -> ModelConfig:
    """Return `model` with the architecture and shapes of `other`."""
    fields = ("architecture", *architecture_of(other).shape_fields)
    return dataclasses.replace(model, **{field: getattr(other, field) for field in fields})


def _load_huggingface(
    folder: Path, *, init_missing: Sequence[str], drop: Sequence[str], exact: bool, report: Callable[[str], None]
) -> PretrainedModel:
    config = read_config(folder)
    names = architecture_of(config.model).names
    tensors = canonical(read_tensors(folder), names=names, path=folder, drop=drop, report=report)
    assembled = assemble(
        tensors,
        side="huggingface",
        model=config.model,
        architecture=config.huggingface_class,
        num_labels=len(config.labels),
        path=folder,
        init_missing=init_missing,
        drop=drop,
        exact=exact,
        report=report,
    )
    if config.model.attention_direction == "left_to_right" and "pooler" in assembled.params:
        raise UserError(
            f"{folder}: config.json says is_decoder, so the [CLS] that its pooler reads sees only itself: type "
            "--drop=pooler,next_sentence,classifier to load the rest"
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
        random=assembled.random,
        embedding=embedding_settings(folder),
        max_length=length if (length := read_max_length(folder)) <= config.model.max_position_embeddings else 0,
        trained_texts=config.trained_texts,
    )


def _check_vocabulary(source: PretrainedModel) -> None:
    tokenizer, rows = source.tokenizer, source.model.vocab_size
    if tokenizer is None or tokenizer.vocab_size <= rows:
        return
    vocabulary = tokenizer.vocabulary if isinstance(tokenizer, WordPieceTokenizer) else None
    added = [token for token in vocabulary.added if token.id >= rows] if vocabulary else []
    if len(added) == tokenizer.vocab_size - rows:
        names = ", ".join(f"{token.content[:40]!r}" for token in added[:5])
        raise UserError(
            f"{source.path}: the word embeddings have {rows} rows, none for {len(added)} of its added_tokens "
            f"({names}): remove them from the tokenizer's files, or give the model that was trained with them"
        )
    raise UserError(
        f"{source.path}: the vocabulary has {tokenizer.vocab_size} tokens, but the word embeddings have only "
        f"{rows} rows: replace it by the vocabulary that the model was trained with"
    )
