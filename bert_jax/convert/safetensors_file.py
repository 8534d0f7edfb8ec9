"""Read and write safetensors files; the reader trusts nothing that the file says of itself.

A file is: 8 bytes, the little-endian length of the header; the header, a JSON object from names to dtype, shape and the
half-open span of bytes; the tensors, end to end in the order of their spans.

The format has no checksums. Files written here carry a CRC-32 a tensor in the header's `__metadata__` (string to
string, which every reader passes over), and they are checked when such a file is read.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bert_jax.errors import UserError

CHECKSUMS = "bert_jax.crc32"
MAX_HEADER_BYTES = 16 << 20  # BERT-Large has 60 KB; what is parsed stays small whatever the file claims
_MAX_RANK = 8
# What a BERT folder may hold: weights in three widths; integers only in buffers that importers pass over.
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
    """Say what is wrong with a file."""


def read_safetensors(file: str | os.PathLike) -> dict[str, np.ndarray]:
    """Map the file's tensors into memory, read-only; nothing is copied.

    Raises:
      UserError: if the file cannot be read, contradicts itself, or differs from its checksums.
    """
    path = Path(file)
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _Bad as error:
        raise UserError(f"{path}: is no safetensors file or is damaged ({error}): copy or download it again") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    if size < 8:
        raise _Bad(f"it has {size} bytes")
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise _Bad(f"its header would have {length} bytes")
        header = _parse(handle.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Bad("__metadata__ is not an object of strings")
    spans = _checked_spans(header, num_bytes=size - 8 - length)
    if not spans:
        return {}
    data = np.memmap(path, mode="r", dtype=np.uint8)[8 + length :] if size > 8 + length else np.zeros(0, np.uint8)
    tensors = {
        name: np.ndarray.view(data[start:end], dtype).reshape(shape)
        for name, (dtype, shape, start, end) in spans.items()
    }
    _compare_checksums(tensors, metadata.get(CHECKSUMS))
    return tensors


def _parse(raw: bytes) -> dict[str, Any]:
    def no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _Bad("a name stands twice in its header")
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=no_repetition)
    except (ValueError, RecursionError) as error:
        raise _Bad(f"its header is not JSON: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise _Bad("its header is not a JSON object")
    return header


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _checked_spans(
    header: Mapping[str, Any], *, num_bytes: int
) -> dict[str, tuple[np.dtype, tuple[int, ...], int, int]]:
    """Return dtype, shape, start and end of each tensor; together they must cover the data exactly."""
    spans = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _Bad(f"{name[:100]!r} is not described by dtype, shape and data_offsets")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES:
            raise _Bad(f"{name[:100]!r} has the type {str(code)[:20]}; these are read: {', '.join(DTYPES)}")
        if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(map(_is_count, shape)):
            raise _Bad(f"{name[:100]!r} has an impossible shape")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
            raise _Bad(f"{name[:100]!r} has impossible offsets")
        start, end = offsets
        if end > num_bytes or end - start != math.prod(shape) * DTYPES[code].itemsize:
            raise _Bad(f"{name[:100]!r} of shape {shape} does not fit bytes {start} to {end} of {num_bytes}")
        spans[name] = (DTYPES[code], tuple(shape), start, end)
    reached = 0
    for name, (_, _, start, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start != reached:
            raise _Bad(f"{name[:100]!r} begins at byte {start} where the tensor before it ends at {reached}")
        reached = end
    if reached != num_bytes:
        raise _Bad(f"{num_bytes - reached} bytes belong to no tensor")
    return spans


def _compare_checksums(tensors: Mapping[str, np.ndarray], recorded: str | None) -> None:
    if recorded is None:
        return
    expected = _parse(recorded.encode("utf-8", "replace"))
    found = _checksums(tensors)
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
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


def write_safetensors(
    file: str | os.PathLike, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, ordered by width and name as the reference writer does, with their checksums.

    Raises:
      OSError: if the disk refuses.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    recorded = json.dumps(_checksums(tensors), separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {}), CHECKSUMS: recorded}}
    place = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": _CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the data begin at a multiple of 8
    with Path(file).open("wb") as handle:
        handle.write(len(raw).to_bytes(8, "little"))
        handle.write(raw)
        for name in order:
            handle.write(_bytes(tensors[name]))
        handle.flush()
        os.fsync(handle.fileno())
