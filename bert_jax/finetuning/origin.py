"""The origin of a workdir's runs: digests that prevent mixing pretrained models, vocabularies or data sets."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.json_files import read_json
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.start_up import weights_digest
from bert_jax.tasks.interface import Split

ORIGIN = "origin.json"
_RANDOM = "parts drawn anew"  # the key of earlier versions' files
_FLAGS = {"weights": "--init", "vocabulary": "--init", "teacher": "--teacher", _RANDOM: "--init_missing"}
_TITLES = {_RANDOM: "randomly initialized parts"}


def settle_origin(
    directory: Path,
    *,
    pretrained: PretrainedModel,
    teacher: PretrainedModel | None,
    random_parts: Sequence[str],
    splits: Sequence[Split],
    hosts: Hosts,
) -> None:
    """Write DIRECTORY/origin.json and DIRECTORY/vocab, or check that existing runs have the same origin.

    A split that no run has used yet (a test set) is added.

    Raises:
      UserError: if existing runs have another origin (the message says what differs), or hosts have different data.
    """
    tokenizer = pretrained.require_tokenizer()
    origin = {
        "weights": weights_digest(pretrained.params),
        "vocabulary": tokenizer.fingerprint[:12],
        _RANDOM: ", ".join(sorted(random_parts)),
        **({"teacher": weights_digest(teacher.params)} if teacher is not None else {}),
        **{f"{split.name} set": _digest(split) for split in splits},
    }
    hosts.check_same("origin of the runs", origin)
    with hosts.main_first("origin.json written"):
        if hosts.is_main:
            _settle(directory, origin)
            tokenizer.save(directory / "vocab")


def _settle(directory: Path, origin: dict[str, str]) -> None:
    file = directory / ORIGIN
    if file.exists() and has_runs(directory):
        previous = read_json(file, form=dict[str, str])
        changed = [name for name, value in origin.items() if previous.get(name, value) != value]
        if changed:
            name = changed[0]
            raise UserError(
                f"--workdir={directory}: its runs have {_TITLES.get(name, name)} {previous[name] or 'none'}, this "
                f"command has {origin[name] or 'none'}: choose another --workdir, or give the previous "
                f"{_FLAGS.get(name, '--data_dir')}"
            )
        origin = previous | origin
    write_json(file, origin)


def has_runs(workdir: Path) -> bool:
    """Return whether `workdir`, or the folder of a task or stage in it, contains a run."""
    return any(next(workdir.glob(pattern), None) for pattern in ("runs/*", "*/runs/*", "*/*/runs/*"))


def _digest(split: Split) -> str:
    features = split.features
    total = zlib.crc32(np.asarray([len(ids) for ids in features.ids], np.int64).tobytes())
    total = zlib.crc32(np.concatenate([*features.ids, np.zeros(0, np.int32)]).astype(np.int32).tobytes(), total)
    for target in features.targets or ():
        total = zlib.crc32(np.asarray(target, np.float64).tobytes(), total)
    return f"{total:08x}"
