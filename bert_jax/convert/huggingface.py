"""The tensors of a HuggingFace folder: model.safetensors, or shards with an index."""

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from bert_jax.convert.folder_advice import INDEX, WEIGHTS, no_model
from bert_jax.convert.prefixes import without_prefix
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.safetensors_file import DTYPES, read_safetensors, write_safetensors
from bert_jax.errors import UserError
from bert_jax.json_files import read_json
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import NameTable, external_tensors, flatten

WEIGHT_DTYPES = {"float32": DTYPES["F32"], "float16": DTYPES["F16"], "bfloat16": DTYPES["BF16"]}


class _Index(TypedDict):
    """The part of the index that is read."""

    weight_map: dict[str, str]


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a folder by their names in the files, as memory maps.

    Raises:
      UserError: if there are no safetensors files, one is damaged, or the index names a file outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    raise no_model(folder)


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    index = folder / INDEX
    weight_map = read_json(index, form=_Index)["weight_map"]
    files = sorted(set(weight_map.values()))
    for file in files:
        if (
            Path(file).name != file
            or len(file) > 255
            or not file.endswith(".safetensors")
            or "\\" in file
            or "\0" in file
        ):
            raise UserError(
                f"{index}: names the file {file[:100]!r}, but only .safetensors files of the same folder are read: "
                "restore the file"
            )
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder / file}: this file of {index.name} is missing: copy or download it again")
        shard = read_safetensors(folder / file)
        indexed = {name for name, shard_file in weight_map.items() if shard_file == file}
        if shard.keys() != indexed:
            wrong = sorted(shard.keys() ^ indexed)
            raise UserError(f"{index} and {file} disagree about {_listed(wrong)}: copy or download the folder again")
        tensors |= shard
    return tensors


def canonical(
    tensors: Mapping[str, np.ndarray],
    *,
    names: NameTable,
    path: Path,
    drop: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> dict[str, np.ndarray]:
    """Return the tensors by the table's names, without buffers and without duplicates of tied parameters.

    A prefix before all names, such as `module.`, is removed and reported.

    Raises:
      UserError: if two tensors have the same name, or tied parameters differ.
    """
    tensors = {name: array for name, array in tensors.items() if not matches(name, drop)}
    tensors = without_prefix(tensors, names=names, side="huggingface", path=path, report=report)
    prefixed = any(name.startswith(names.prefix) for name in tensors)
    result: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        full = names.full_name(name, prefixed=prefixed)
        if full in result:
            raise UserError(f"{path}: two tensors have the name {full}: drop one with --drop=NAME")
        result[full] = array
    for buffer in names.buffers:
        result.pop(buffer, None)
    for second, first in names.tied.items():
        if second not in result:
            continue
        copy = result.pop(second)
        if not same_bits(result.setdefault(first, copy), copy):
            raise UserError(
                f"{path}: {second} differs from {first}, but the model ties them: to load only {first}, type "
                f"--drop={second}"
            )
    return result


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two arrays have the same dtype, shape and bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if not first.size:
        return True
    # Memory maps are compared in slices, so that nothing of their size is allocated.
    bits = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second)]
    step = 1 << 24
    slices = [slice(start, start + step) for start in range(0, len(bits[0]), step)]
    return all(np.array_equal(bits[0][part], bits[1][part]) for part in slices)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether `name` equals one of `patterns`, is below one of them, or matches one with wildcards."""
    return any(
        name == pattern or name.startswith((f"{pattern}/", f"{pattern}.")) or fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
    )


def to_tensors(source: PretrainedModel, *, dtype: str) -> dict[str, np.ndarray]:
    """Return a model's tensors by their HuggingFace names.

    Raises:
      UserError: if a value overflows in the narrower dtype.
    """
    architecture = architecture_of(source.model)
    names, flat = architecture.names, flatten(source.params)
    target = WEIGHT_DTYPES[dtype]
    # The bare class saves its tensors without the prefix that they have in the other classes.
    bare = source.architecture == architecture.huggingface.bare_class
    tensors = {}
    for name, array in external_tensors(names.of(source.parts), flat, side="huggingface"):
        with np.errstate(over="ignore"):
            narrow = array.astype(target)
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise UserError(f"{name} has values too large for {dtype}: export with --dtype=float32 or bfloat16")
        tensors[name.removeprefix(names.prefix) if bare else name] = narrow
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], *, max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards of at most `max_shard_bytes` and their index.

    Raises:
      OSError: if writing fails.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    free = max_shard_bytes
    for name, array in tensors.items():
        if array.nbytes > free and shards[-1]:
            shards.append({})
            free = max_shard_bytes
        shards[-1][name] = array
        free -= array.nbytes
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _listed(items: Sequence[str], *, at_most: int = 8) -> str:
    shown = ", ".join(item[:100] for item in items[:at_most])
    return shown if len(items) <= at_most else f"{shown} and {len(items) - at_most} more"
