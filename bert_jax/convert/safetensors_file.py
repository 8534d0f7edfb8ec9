"""safetensors files with checksums, read and written by the `safetensors` library, which checks the header.

The format has no checksums. Files written here contain a CRC-32 per tensor in the header's `__metadata__`, which other
readers ignore. It is checked when such a file is read.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bert_jax.errors import UserError
from bert_jax.files import open_regular
from bert_jax.json_files import parse_object

CHECKSUMS = "bert_jax.crc32"
_MAX_RANK = 8
# The dtypes in BERT folders: three of weights; the others only occur in buffers, which importers skip.
DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class _Bad(Exception):
    """A damaged file."""


def read_safetensors(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the file's tensors as read-only memory maps.

    Raises:
      UserError: if the file cannot be read, is inconsistent, or differs from its checksums.
    """
    path = Path(file)
    try:
        # Opening compares the header with the file: length, dtypes, offsets, and that tensors cover all bytes.
        with open_regular(path) as handle, safe_open(path, framework="np"):
            return _read(path, handle)
    except OSError as error:
        raise UserError(f"{path}: cannot read the file ({error.strerror or error})") from error
    except (_Bad, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a safetensors file, or damaged ({reason}): copy or download it again") from None


def _read(path: Path, handle: BinaryIO) -> dict[str, np.ndarray]:
    """Return the tensors of an open file whose header has been checked."""
    length = int.from_bytes(handle.read(8), "little")
    header = _parse(handle.read(length))
    metadata = header.pop("__metadata__", None) or {}
    data = np.memmap(path, mode="r", dtype=np.uint8)[8 + length :]
    tensors = {name: _view(data, entry, name=name[:100]) for name, entry in header.items()}
    _compare_checksums(tensors, metadata.get(CHECKSUMS))
    return tensors


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        return parse_object(raw)  # refuses a name that is there twice, of which the library would use the last
    except ValueError as error:
        raise _Bad(f"its header: {error}") from None


def _view(data: np.ndarray, entry: Mapping[str, Any], *, name: str) -> np.ndarray:
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Bad(f"{name!r} has other fields than dtype, shape and data_offsets")
    if entry["dtype"] not in DTYPES:
        raise _Bad(f"{name!r} has the dtype {str(entry['dtype'])[:20]}; supported are {', '.join(DTYPES)}")
    if len(entry["shape"]) > _MAX_RANK:
        raise _Bad(f"{name!r} has too many axes")
    start, end = entry["data_offsets"]
    try:
        return np.ndarray.view(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    except (ValueError, OverflowError, TypeError) as error:  # such as (0, 2^63), whose product is right
        raise _Bad(f"{name!r} has an impossible shape ({error})") from None


def _compare_checksums(tensors: Mapping[str, np.ndarray], recorded: str | None) -> None:
    if recorded is None:
        return
    expected = _parse(recorded.encode("utf-8", "replace"))
    actual = _checksums(tensors)
    wrong = [name for name in sorted(expected.keys() | actual.keys()) if expected.get(name) != actual.get(name)]
    if wrong:
        raise _Bad(f"the checksum of {wrong[0][:100]!r} differs")


def _checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the CRC-32 of each tensor's dtype, shape and bytes."""
    return {
        name: zlib.crc32(_bytes(array), zlib.crc32(f"{_CODES[array.dtype]}{array.shape}".encode()))
        for name, array in tensors.items()
    }


def _bytes(array: np.ndarray) -> memoryview | bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b""


def write_safetensors(file: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors with their checksums.

    Raises:
      OSError: if writing fails.
    """
    path = Path(file)
    path.touch()  # with the user's default permissions, which some versions of the library do not use
    mode = path.stat().st_mode
    metadata = {"format": "pt", CHECKSUMS: json.dumps(_checksums(tensors), separators=(",", ":"))}
    try:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())[:200]) from error
    path.chmod(mode)
    with path.open("rb+") as handle:
        _sort_metadata(handle)
        os.fsync(handle.fileno())


def _sort_metadata(handle: IO[bytes]) -> None:
    """Sort the metadata, which the library writes in random order, so that a model always gives the same file."""
    length = int.from_bytes(handle.read(8), "little")
    header = _parse(handle.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    if len(raw) == length:
        handle.seek(8)
        handle.write(raw)
        handle.flush()
