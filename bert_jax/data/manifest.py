"""Record what a data set is built from, and refuse to resume it with other inputs or settings."""

import hashlib
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bert_jax.config import DataConfig
from bert_jax.data.shards import DATASET_NAME, INFO_FILE
from bert_jax.data.source import TextSource
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError, counted
from bert_jax.json_files import load_json

_LAYOUT = 1  # version of the output: raised when the same text would give other bytes
_SAMPLE_BYTES = 1 << 16
_WORDS = "words of A"  # with recipe=original, since 0.2.0; before, a segment's first token always began a word
_MAX_BYTES = 1 << 30  # of a manifest: eight million input files
_LATER: dict[str, Any] = {  # missing in older manifests
    "pack": False,
    "max_instances_per_row": 0,
    "max_instance_length": 0,
    "text_column": "text",
    "text_key": "text",
    "documents": "",
    "strip_accents": "auto",
}


class _Manifest(TypedDict):
    """The part of the file whose types matter: the other values are only compared."""

    inputs: dict[str, str]


def make_manifest(
    config: DataConfig, *, sources: Sequence[TextSource], tokenizer: Tokenizer | None, vocab_size: int, recipe: str
) -> dict[str, Any]:
    """Return everything that determines the data set, as JSON values.

    A file is identified by its name, its size and a hash of its beginning, middle and end: a full hash would read the
    whole corpus at every start of a training run.
    """
    return {
        "layout": _LAYOUT,
        "recipe": recipe,
        "vocabulary": tokenizer.fingerprint if tokenizer else f"learned, {vocab_size} pieces",
        "do_lower_case": tokenizer.do_lower_case if tokenizer else config.do_lower_case,
        **{
            name: getattr(config, name)
            for name in ("format", "language", "objective", "short_seq_prob", "heldout_fraction", "seed", *_LATER)
        },
        **({_WORDS: "may continue in B"} if recipe == "original" else {}),
        "inputs": {source.name: f"{source.size} bytes, {_sample_hash(source)}" for source in sources},
    }


def _sample_hash(source: TextSource) -> str:
    if source.kind != "file":
        return source.kind
    digest = hashlib.blake2b(digest_size=16)
    try:
        with Path(source.path).open("rb") as file:
            for offset in (0, source.size // 2, max(source.size - _SAMPLE_BYTES, 0)):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise UserError(f"data.input: cannot read {source.path}: {error.strerror or error}") from error
    return digest.hexdigest()


def check_manifest(out: Path, manifest: dict[str, Any], *, flag: str = "--out", is_finished: bool = False) -> None:
    """Compare with the manifest in `out`, if there is one; remove a differing build that has no shard yet.

    A data set that `is_finished` may be of an earlier version, whose word starts differ. `flag` chooses `out` on the
    command line.

    Raises:
      UserError: naming the differences; or if `out` contains conflicting files that are not a data set's.
    """
    file = out / "manifest.json"
    remedy = another(flag, instead="delete that folder to build it again")
    if not file.exists():
        for name in ("vocab", DATASET_NAME):
            if (out / name).exists():
                raise UserError(f"{out / name} was not made by prepare: {another(flag, instead='move it away')}")
        return
    try:
        known = _LATER | load_json(file, form=_Manifest, max_bytes=_MAX_BYTES, max_values=_MAX_BYTES >> 4)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}): {remedy}") from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): {remedy}") from None
    if is_finished and _WORDS in manifest:
        known.setdefault(_WORDS, manifest[_WORDS])
    if known != manifest and not _has_shard(out / DATASET_NAME):
        for name in ("vocab", DATASET_NAME, "work"):
            shutil.rmtree(out / name, ignore_errors=True)
        return
    late = ("vocabulary", "inputs")  # compared last: casing, which says more, also changes the vocabulary's fingerprint
    names = sorted(set(known) | set(manifest), key=lambda name: (name in late, name))
    changed = [name for name in names if known.get(name) != manifest.get(name)]
    differences = [f"with {name}={known.get(name)!r}, now it is {manifest.get(name)!r}" for name in changed]
    if "inputs" in changed:
        differences[-1] = f"from other text: {_difference(known['inputs'], manifest['inputs'])}"
    if differences:
        raise UserError(f"{out} was built {'; '.join(differences)}: {remedy}")


def _has_shard(folder: Path) -> bool:
    """Return whether a shard is written; those of a finished length may be in a bucket, and only their facts here."""
    return any(next(folder.rglob(pattern), None) for pattern in ("*.array_record*", INFO_FILE))


def another(flag: str, *, instead: str) -> str:
    """Return the remedy of a folder that has something else: of a run's workdir, nothing is deleted by hand."""
    return f"choose another {flag}" + (f", or {instead}" if flag == "--out" else "")


def _difference(before: dict[str, str], now: dict[str, str]) -> str:
    """Return the first file that differs, and the files of both if their names do.

    Names do not say in which folder the files are, so nothing is said about what is on the disk.
    """
    name = next(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
    if before.keys() == now.keys():
        return f"{name} differs now"
    how = "is not in the input now" if name not in now else "differs now" if name in before else "was not in the input"
    return f"{name} {how} (built from {_listed(before)}; the input now is {_listed(now)})"


def _listed(names: Collection[str]) -> str:
    if not names:
        return "no file"
    others = len(names) - 1
    return min(names) + (f" and {counted(others, 'more file')}" if others else "")
