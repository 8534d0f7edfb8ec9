"""Loading of a model from a workdir: the newest intact checkpoint, or the one in the path."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.config import ModelConfig, PhaseConfig, model_at
from bert_jax.convert.assemble import name_architecture, random_parameter, summarize_entries
from bert_jax.convert.huggingface import matches
from bert_jax.convert.pretrained import CHECKPOINTS, PretrainedModel
from bert_jax.convert.sentence_transformers import recorded_settings
from bert_jax.convert.tokenizer_files import find_tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.table import KINDS
from bert_jax.model.architectures import architecture_of
from bert_jax.model.bilstm import BILSTM, bilstm_shapes
from bert_jax.model.parameter_names import flatten, nest
from bert_jax.runs.checkpoint import Checkpointer, checksums, damage, quiet_abandoned_requests


class _Damaged(Exception):
    """A damaged checkpoint."""


def load_workdir(
    path: Path,
    *,
    report: Callable[[str], None],
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    exact: bool = True,
) -> PretrainedModel:
    """Load the model of a workdir. A damaged checkpoint is reported, and the previous one is tried.

    Raises:
      UserError: if there is no checkpoint, none can be read, or the one in the path is damaged.
    """
    path = path.absolute()  # Orbax does not accept relative paths
    requested = None if (path / CHECKPOINTS).is_dir() else int(path.name)
    workdir = path if requested is None else path.parent.parent
    directory = workdir / CHECKPOINTS
    checkpointer = Checkpointer(directory, report=report)
    quiet_abandoned_requests()
    try:
        steps = checkpointer.steps()
        if requested is not None and requested not in steps:
            available = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{path}: not a complete checkpoint: give one of the steps {available}")
        for step in [requested] if requested is not None else reversed(steps):
            try:
                record = checkpointer.metadata(step)
                params = _read_params(directory / str(step), record=record)
                break
            except Exception as error:  # the reader may raise anything if a file is damaged
                reason = damage(error, step=step, directory=directory)
                report(f"skipped the damaged checkpoint of step {step}: {reason}")
        else:
            state = f"none of its checkpoints can be read (steps {steps})" if steps else "there is no checkpoint yet"
            raise UserError(f"{path}: {state}: give another model, or train this one first")
    finally:
        checkpointer.close()
    record = {**record, "step": step}
    return _source(path, workdir, params, record, init_missing=init_missing, drop=drop, exact=exact)


def _source(
    path: Path,
    workdir: Path,
    params: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    init_missing: Sequence[str],
    drop: Sequence[str],
    exact: bool,
) -> PretrainedModel:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    saved = {name: value for name, value in record["config"]["model"].items() if name in fields}
    model = dataclasses.replace(_at_step(ModelConfig(**saved), record), dtype="float32")
    labels = list(record.get("labels", ()))
    names = architecture_of(model).names
    flat = {name: array for name, array in flatten(params).items() if not matches(name, drop)}
    random = [entry for entry in names.entries if entry.flax not in flat and matches(entry.flax, init_missing)]
    flat |= {entry.flax: random_parameter(entry, model=model, num_labels=len(labels) or 2) for entry in random}
    params = nest(flat)
    parts = tuple(part for part in names.parts if part in params)
    bilstm = {name: array for name, array in flat.items() if name.partition("/")[0] == BILSTM}
    _check_shapes({name: array for name, array in flat.items() if name not in bilstm}, model=model, path=path)
    if bilstm:
        _check_bilstm(bilstm, model=model, path=path)
    return PretrainedModel(
        path=path,
        kind="workdir",
        model=model,
        architecture=name_architecture(
            parts, model=model, declared=record.get("architecture", ""), path=path, exact=exact
        ),
        params={part: params[part] for part in (*parts, *([BILSTM] if bilstm else []))},
        dtype="float32",
        tokenizer=find_tokenizer(workdir / "vocab"),
        label_fields=KINDS.get(record.get("kind", ""), OutputKind).label_fields(labels),
        record=record,
        embedding=recorded_settings(record),
        random=summarize_entries(random, model=model),
    )


def _at_step(model: ModelConfig, record: Mapping[str, Any]) -> ModelConfig:
    """Return the model as the phase of the checkpoint's step trained it."""
    train = record["config"].get("train", {})
    fields = {field.name for field in dataclasses.fields(PhaseConfig)}
    phases = [PhaseConfig(**{k: v for k, v in item.items() if k in fields}) for item in train.get("phases", ())]
    return model_at(model, phases=phases, num_steps=train["num_steps"], step=record["step"]) if phases else model


def _read_params(checkpoint: Path, *, record: Mapping[str, Any]) -> dict[str, Any]:
    """Restore the parameters without the optimizer state, and compare them with their checksums."""
    state = checkpoint / "state"
    size = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(state).item_metadata.tree["params"]
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        num_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        # Orbax compresses (zstd): trained weights by about a tenth, constant arrays of zeros or ones by much more.
        if num_bytes > 1000 * size:
            raise _Damaged(f"it claims {num_bytes} bytes of parameters in {size} bytes of files")
        item = {"params": shapes}
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        request = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
        params = reader.restore(state, args=request)["params"]
    expected = record.get("checksums", {})
    for name, checksum in checksums({"params": params}).items():
        if expected.get(name, checksum) != checksum:
            raise _Damaged(f"the checksum of {name} differs")
    return jax.tree.map(np.asarray, params)


def _check_bilstm(flat: Mapping[str, np.ndarray], *, model: ModelConfig, path: Path) -> None:
    layers = len({name.split("/")[1] for name in flat}) // 2
    expected = {
        f"{BILSTM}/{name}": shape for name, shape in bilstm_shapes(model.hidden_size, num_layers=layers).items()
    }
    if {name: array.shape for name, array in flat.items()} != expected:
        raise UserError(f"{path}: its BiLSTM does not fit the config: give a checkpoint of this version")


def _check_shapes(flat: Mapping[str, np.ndarray], *, model: ModelConfig, path: Path) -> None:
    names = architecture_of(model).names
    table = {entry.flax: entry for entry in names.entries}
    labels = flat["classifier/bias"].shape[-1] if "classifier/bias" in flat else 0
    unknown = sorted(name for name in flat if name not in table)
    parts = {entry.part for name, entry in table.items() if name in flat}
    missing = [entry.flax for entry in names.of(tuple(parts)) if entry.flax not in flat]
    wrong = [
        name
        for name, array in flat.items()
        if name in table and array.shape != table[name].shape(model, num_labels=labels)
    ]
    for problem, affected in (("unexpected", unknown), ("missing", missing), ("wrong shape", wrong)):
        if affected:
            raise UserError(
                f"{path}: parameters do not fit the config ({problem}: {', '.join(affected[:6])}): give a checkpoint "
                "of this version"
            )
