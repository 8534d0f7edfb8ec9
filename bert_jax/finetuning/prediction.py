"""The outputs of a split, in the order of its examples, and their files."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.errors import UserError
from bert_jax.files import open_regular, replacing
from bert_jax.finetuning.packing import PackedBatch, all_batches
from bert_jax.finetuning.program import TaskProgram
from bert_jax.kinds.base import OutputKind
from bert_jax.tasks.interface import Instances, Outputs


def predict_outputs(program: TaskProgram, params: Any, *, features: Instances) -> list[np.ndarray]:
    """Return one output per example (`tasks/interface.py`). Examples of similar length are computed together."""
    outputs: list[np.ndarray] = [np.zeros(0)] * features.num_examples
    pending: tuple[PackedBatch, jax.Array] | None = None
    for batch in all_batches(features, shape=program.shape, kind=program.kind, rows=program.eval_rows):
        computed = program.predict(params, {**batch.arrays, "targets": batch.arrays["targets"]})
        if pending is not None:
            _unpack(*pending, features=features, kind=program.kind, into=outputs)
        pending = batch, computed  # fetched while the next batch is computed
    if pending is not None:
        _unpack(*pending, features=features, kind=program.kind, into=outputs)
    return outputs


def _unpack(
    batch: PackedBatch, computed: jax.Array, *, features: Instances, kind: OutputKind, into: list[np.ndarray]
) -> None:
    values = np.asarray(jax.device_get(computed), np.float32)
    for b, row in enumerate(batch.order):
        start = 0
        for slot, example in enumerate(row):
            if example >= 0:
                length = int(features.lengths[example])
                into[example] = kind.unpack(values[b], slot=slot, start=start, length=length)
                start += length


def average_outputs(runs: Sequence[Outputs]) -> list[np.ndarray]:
    """Return the mean outputs of several runs, an ensemble (paper section 4.2)."""
    return [np.mean(np.stack(outputs), axis=0) for outputs in zip(*runs, strict=True)]


def save_outputs(path: Path, *, outputs: Outputs) -> None:
    """Write outputs as one flat array with their lengths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = outputs[0].shape[-1]
    lengths = np.array([output.size // width for output in outputs], np.int64)
    flat = np.concatenate([output.reshape(-1, width) for output in outputs])
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, flat=flat, lengths=lengths, flat_examples=outputs[0].ndim == 1)


def load_outputs(path: Path) -> list[np.ndarray]:
    """Return the outputs in a file of `save_outputs`.

    Raises:
      UserError: if it is damaged.
    """
    try:
        with open_regular(path) as stream, np.load(stream) as file:
            parts = np.split(file["flat"], np.cumsum(file["lengths"])[:-1])
            return [part[0] for part in parts] if bool(file["flat_examples"]) else list(parts)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path}: damaged ({str(error)[:200]}): delete {path.parent} and run the same command again"
        ) from None
