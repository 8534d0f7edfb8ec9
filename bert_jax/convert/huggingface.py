"""Read and write the tensors of a HuggingFace folder: model.safetensors, whole or in shards with an index."""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.safetensors_file import DTYPES, read_safetensors, write_safetensors
from bert_jax.errors import UserError
from bert_jax.files import read_json
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import NameTable, flatten, to_external

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_DTYPES = {"float32": DTYPES["F32"], "float16": DTYPES["F16"], "bfloat16": DTYPES["BF16"]}


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Map all tensors of a folder into memory under the names that the files give them.

    Raises:
      UserError: if there are no safetensors, a file is damaged, or the index points elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickled = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()]
    if pickled:
        raise UserError(pickle_message(folder / pickled[0]))
    raise UserError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}: name a folder that holds one")


def pickle_message(file: Path) -> str:
    """Return the line that refuses a pickle and says how to convert it."""
    return (
        f"{file}: is a pickle, which can run any program when it is read, so it is not read: convert it where you "
        f"trust it, "
        'with torch and transformers installed: python -c "from transformers import AutoModelForPreTraining as M; '
        f"M.from_pretrained('{file.parent}').save_pretrained('{file.parent}-safetensors')\" (for a fine-tuned model "
        f"write its "
        "class for AutoModelForPreTraining), then name that folder"
    )


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index}: weight_map must name a file for each tensor: restore the file")
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
                f"{index}: names the file {file[:100]!r}: only .safetensors files of the same folder are read"
            )
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder / file}: is missing, {index.name} names it: copy or download it again")
        found = read_safetensors(folder / file)
        promised = {name for name, place in weight_map.items() if place == file}
        if found.keys() != promised:
            wrong = sorted(found.keys() ^ promised)
            raise UserError(f"{index}: and {file} disagree about {_listed(wrong)}: copy or download the folder again")
        tensors |= found
    return tensors


def canonical(
    tensors: Mapping[str, np.ndarray], *, names: NameTable, where: Path, drop: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return the tensors under the table's names; buffers and second names are gone.

    Raises:
      UserError: if two tensors claim one name, or tied parameters differ.
    """
    kept = {name: array for name, array in tensors.items() if not matches(name, drop)}
    prefixed = any(name.startswith(names.prefix) for name in kept)
    result: dict[str, np.ndarray] = {}
    for name, array in kept.items():
        full = names.full_name(name, prefixed=prefixed)
        if full in result:
            raise UserError(f"{where}: two tensors are called {full}: drop one with --drop=NAME")
        result[full] = array
    for buffer in names.buffers:
        result.pop(buffer, None)
    for second, first in names.tied.items():
        if second not in result:
            continue
        copy = result.pop(second)
        if not same_bits(result.setdefault(first, copy), copy):
            raise UserError(
                f"{where}: {second} differs from {first}; BERT ties them, and so does this model: drop the first with "
                f"--drop={second} if that is what you want"
            )
    return result


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two arrays are equal in type, shape and every bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if not first.size:
        return True
    # A memory map is compared a slice at a time, so that nothing of its size is allocated.
    bits = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second)]
    step = 1 << 24
    return all(np.array_equal(bits[0][at : at + step], bits[1][at : at + step]) for at in range(0, len(bits[0]), step))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether `name` is one of `patterns`, below one of them, or fits one with wildcards."""
    return any(
        name == pattern or name.startswith((f"{pattern}/", f"{pattern}.")) or fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
    )


def to_tensors(source: PretrainedModel, *, dtype: str) -> dict[str, np.ndarray]:
    """Return the tensors of a folder from a model's tree.

    Raises:
      UserError: if a value does not survive the narrower type (an overflow to infinity).
    """
    architecture = architecture_of(source.model)
    names, flat = architecture.names, flatten(source.params)
    target = WEIGHT_DTYPES[dtype]
    # The bare class saves its tensors without the prefix that they have inside of the other classes.
    bare = source.architecture == architecture.huggingface.bare_class
    tensors = {}
    for entry in names.of(source.parts):
        for name, array in to_external(entry, flat[entry.flax], side="huggingface"):
            with np.errstate(over="ignore"):
                narrow = array.astype(target)
            if not np.isfinite(narrow.astype(np.float32)).all():
                raise UserError(f"{name} holds values too large for {dtype}: export with --dtype=float32 or bfloat16")
            tensors[name.removeprefix(names.prefix) if bare else name] = narrow
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], *, max_shard_bytes: int) -> None:
    """Write model.safetensors, or shards of at most `max_shard_bytes` and their index.

    Raises:
      OSError: if the disk refuses.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    room = max_shard_bytes
    for name, array in tensors.items():
        if array.nbytes > room and shards[-1]:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = array
        room -= array.nbytes
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
