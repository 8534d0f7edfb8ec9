"""Say what the runs of a workdir began from, so that it never mixes runs of two SOURCEs, vocabularies or data sets."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.start_up import weights_digest
from bert_jax.tasks.interface import Split

ORIGIN = "origin.json"
_WHERE = {"weights": "--init", "vocabulary": "--init", "parts drawn anew": "--init_missing"}


def settle_origin(
    directory: Path, *, source: PretrainedModel, fresh: Sequence[str], splits: Sequence[Split], hosts: Hosts
) -> None:
    """Write DIRECTORY/origin.json and DIRECTORY/vocab, or check that the runs there began from the same.

    A split that no run has seen yet (a test set) is added.

    Raises:
      UserError: if a run there began from something else (the line says from what), or a host has other data.
    """
    tokenizer = source.require_tokenizer()
    origin = {
        "weights": weights_digest(source.params),
        "vocabulary": tokenizer.fingerprint[:12],
        "parts drawn anew": ", ".join(sorted(fresh)),
        **{f"{split.name} set": _digest(split) for split in splits},
    }
    hosts.check_same("origin of the runs", origin)
    with hosts.main_first("origin of the runs written"):
        if hosts.is_main:
            _settle(directory, origin)
            tokenizer.save(directory / "vocab")


def _settle(directory: Path, origin: dict[str, str]) -> None:
    file = directory / ORIGIN
    if file.exists() and has_runs(directory):
        before = read_json(file)
        other = [name for name, value in origin.items() if before.get(name, value) != value]
        if other:
            given = _WHERE.get(other[0], "--data_dir")
            raise UserError(
                f"--workdir={directory} holds runs that began from another {other[0]} ({before[other[0]] or 'none'}, "
                f"now {origin[other[0]] or 'none'}): choose another --workdir, or give the old {given}"
            )
        origin = before | origin
    write_json(file, origin)


def has_runs(workdir: Path) -> bool:
    """Say whether a run has begun in `workdir`, or in the folder of a task or stage in it."""
    return any(next(workdir.glob(pattern), None) for pattern in ("runs/*", "*/runs/*", "*/*/runs/*"))


def _digest(split: Split) -> str:
    features = split.features
    total = zlib.crc32(np.asarray([len(ids) for ids in features.ids], np.int64).tobytes())
    total = zlib.crc32(np.concatenate([*features.ids, np.zeros(0, np.int32)]).astype(np.int32).tobytes(), total)
    for target in features.targets or ():
        total = zlib.crc32(np.asarray(target, np.float64).tobytes(), total)
    return f"{total:08x}"
