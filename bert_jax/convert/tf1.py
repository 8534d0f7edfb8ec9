"""Reader of TF1 checkpoints (`PREFIX.index` and `PREFIX.data-00000-of-00001`) without TensorFlow.

The index is an SSTable from variable names to BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto): dtype,
shape, shard, offset, size and the masked CRC-32C of the bytes. All sizes are compared with the files before they are
used, and all checksums of weights are verified.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from bert_jax.convert.assemble import assemble
from bert_jax.convert.huggingface import matches
from bert_jax.convert.prefixes import without_prefix
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.sstable import MAX_BYTES, TableError, read_table, read_varint
from bert_jax.crc32c import masked_crc32c
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.files import read_limited
from bert_jax.json_files import read_json
from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.model.huggingface_fields import read_activation

# tensorflow/core/framework/types.proto
_DTYPES = {1: np.dtype("<f4"), 14: np.dtype(ml_dtypes.bfloat16), 19: np.dtype("<f2")}
_INTEGERS = {3, 4, 5, 6, 9, 10, 17, 22, 23}
_OBJECT_SUFFIX = b"/.ATTRIBUTES/VARIABLE_VALUE"
_DTYPE_NAMES = {2: "double", 3: "int32", 7: "string", 9: "int64"}
# Variables that are not weights: steps, and the moments of the original's Adam, of LAMB and of TensorFlow's Adam.
_NOT_WEIGHTS = re.compile(
    r"global_step|good_steps|loss_scale|bad_steps|.*/((adam|lamb)_[mv](_\d+)?|Adam(_\d+)?)|beta[12]_power(_\d+)?"
    r"|_CHECKPOINTABLE_OBJECT_GRAPH"
)
# The original's "gelu" is the tanh approximation (modeling.py).
_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu"}
_MAX_RANK = 8


def find_prefix(path: Path) -> Path | None:
    """Return the prefix of the TF1 checkpoint at `path` (a prefix, file or folder), or None if there is none."""
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    if not name:  # the root folder
        return None
    prefix = path.with_name(name)
    if len(name) < 250 and prefix.with_name(f"{prefix.name}.index").is_file():
        return prefix
    if (path / "bert_config.json").is_file():
        indexes = sorted(path.glob("*.index"))
        if len(indexes) > 1:
            names = ", ".join(index.stem for index in indexes[:5])
            raise UserError(
                f"{path}: contains several TF1 checkpoints ({names}): give one, for example {path / indexes[0].stem}"
            )
        if indexes:
            return indexes[0].with_suffix("")
    return None


def load_tf1(
    prefix: Path,
    *,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    exact: bool = True,
    report: Callable[[str], None] = print,
) -> PretrainedModel:
    """Load a released checkpoint with bert_config.json and vocab.txt in the same folder.

    Raises:
      UserError: if a file is missing or damaged, or the variables are not those of BERT.
    """
    file = prefix.with_name("bert_config.json")
    raw = read_json(file)
    activation = read_activation(raw, "hidden_act", file=file, known=_ACTIVATIONS)
    model = ARCHITECTURES["bert"].huggingface.read_fields({**raw, "hidden_act": activation}, file)
    tensors = {name: array for name, array in read_bundle(prefix).items() if not matches(name, drop)}
    names = ARCHITECTURES["bert"].names
    tensors = without_prefix(tensors, names=names, side="tf1", path=prefix, report=report)
    # Integers, such as local_step, are read as empty arrays: they count something.
    weights = {name: array for name, array in tensors.items() if array.size and not _NOT_WEIGHTS.fullmatch(name)}
    assembled = assemble(
        weights,
        side="tf1",
        model=model,
        architecture="",
        num_labels=0,
        path=prefix,
        init_missing=init_missing,
        drop=drop,
        exact=exact,
        report=report,
    )
    vocabulary = prefix.with_name("vocab.txt")
    return PretrainedModel(
        path=prefix,
        kind="tf1",
        model=model,
        architecture=assembled.architecture,
        params=assembled.params,
        dtype=assembled.dtype,
        tokenizer=load_tokenizer(vocabulary) if vocabulary.exists() else None,
        random=assembled.random,
    )


@dataclasses.dataclass(frozen=True)
class _Variable:
    """A variable in the index."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def read_bundle(prefix: Path) -> dict[str, np.ndarray]:
    """Return the weights of a checkpoint. Variables that are not weights are listed with empty arrays.

    Raises:
      UserError: if it is damaged or partitioned.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    try:
        return _read_bundle(prefix, index)
    except OSError as error:
        raise UserError(f"{error.filename or prefix}: cannot read the file ({error.strerror or error})") from None
    except TableError as error:
        raise UserError(
            f"{prefix}: the TF1 checkpoint is damaged ({error}): copy or download its files again"
        ) from None


def _read_bundle(prefix: Path, index: Path) -> dict[str, np.ndarray]:
    if index.stat().st_size > MAX_BYTES:
        raise TableError(f"{index.name} is larger than the index of any BERT model")
    table = read_table(read_limited(index, max_bytes=MAX_BYTES))
    num_shards = _parse_header(table.pop(b"", b""))
    objects = [name for name in table if name.endswith(_OBJECT_SUFFIX)]
    if objects:
        raise UserError(
            f"{prefix}: a TF2 object-based checkpoint ({objects[0].decode('utf-8', 'replace')[:60]}), whose names "
            "depend on the program that wrote it; only TF1 checkpoints are read: convert it to PyTorch with "
            "convert_bert_original_tf2_checkpoint_to_pytorch.py of transformers 4, save it as a HuggingFace folder "
            "with safetensors, and give that folder"
        )
    shards = _open_shards(prefix, num_shards)
    variables: dict[str, _Variable] = {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for key, value in table.items():
        name = key.decode("utf-8", "replace")
        variable = _parse_entry(value, name=name)
        if not variable.shard < num_shards:
            raise TableError(f"{name[:100]} is in shard {variable.shard} of {num_shards}")
        data = shards[variable.shard]
        if variable.offset + variable.size > len(data):
            raise TableError(f"{name[:100]} is outside its data file, which may be truncated")
        spans.setdefault(variable.shard, []).append((variable.offset, variable.offset + variable.size))
        variables[name] = variable
    for shard, shard_spans in spans.items():  # before the checksums, so that no byte is read twice
        _check_cover(sorted(shard_spans), num_bytes=len(shards[shard]))
    return {
        name: np.zeros(0, np.float32)
        if _NOT_WEIGHTS.fullmatch(name) or variable.dtype in _INTEGERS
        else _view(shards[variable.shard], variable, name=name)
        for name, variable in variables.items()
    }


def _view(data: np.ndarray, variable: _Variable, *, name: str) -> np.ndarray:
    if variable.dtype not in _DTYPES:
        kind = _DTYPE_NAMES.get(variable.dtype, f"type {variable.dtype}")
        raise TableError(f"{name[:100]} has dtype {kind}, which weights do not have")
    dtype = _DTYPES[variable.dtype]
    if variable.size != math.prod(variable.shape) * dtype.itemsize:
        raise TableError(f"{name[:100]} of shape {variable.shape} does not fit {variable.size} bytes")
    raw = data[variable.offset : variable.offset + variable.size]
    if masked_crc32c(raw) != variable.crc:
        raise TableError(f"the checksum of {name[:100]} differs")
    return np.ndarray.view(np.ascontiguousarray(raw), dtype).reshape(variable.shape)


def _open_shards(prefix: Path, count: int) -> list[np.ndarray]:
    shards = []
    for number in range(count):
        file = prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")
        if not file.is_file():
            raise UserError(f"{file}: this file of {prefix.name}.index is missing: copy or download it again")
        empty = file.stat().st_size == 0
        shards.append(np.zeros(0, np.uint8) if empty else np.memmap(file, mode="r", dtype=np.uint8))
    return shards


def _check_cover(spans: Sequence[tuple[int, int]], *, num_bytes: int) -> None:
    last_end = 0
    for start, end in spans:
        if start < last_end:
            raise TableError("two variables overlap")
        last_end = end
    if last_end != num_bytes:
        raise TableError(f"its data file has {num_bytes} bytes, but the last variable ends at {last_end}")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the field numbers and values of a protocol buffer: numbers, or the bytes of nested messages."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = read_varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = read_varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise TableError(f"a record has the unknown wire type {kind}")
        if at + size > len(message):
            raise TableError("a record is truncated")
        raw = message[at : at + size]
        yield tag >> 3, raw if kind == 2 else int.from_bytes(raw, "little")
        at += size


def _parse_header(message: bytes) -> int:
    """Return the number of data files (BundleHeaderProto)."""
    values = dict(_fields(message))
    shards = values.get(1, 0)
    if not isinstance(shards, int) or not 0 < shards <= 1000:
        raise TableError("its number of data files is missing or wrong")
    if values.get(2, 0) != 0:
        raise TableError("its numbers are big-endian, which is not supported")
    return shards


def _parse_entry(message: bytes, *, name: str) -> _Variable:
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    shape: tuple[int, ...] = ()
    for field, value in _fields(message):
        if field == 7:
            raise UserError(
                f"{name[:100]} is a partitioned variable, which is not supported: save the checkpoint again without a "
                "partitioner"
            )
        if field == 2 and isinstance(value, bytes):
            shape = _parse_shape(value)
        elif field in numbers and isinstance(value, int):
            numbers[field] = value
        else:
            raise TableError(f"the record of {name[:100]} has field {field} of the wrong kind")
    if max(numbers.values()) >> 62:
        raise TableError(f"the record of {name[:100]} has an impossible number")
    return _Variable(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6])


def _parse_shape(message: bytes) -> tuple[int, ...]:
    """Return the sizes of a TensorShapeProto."""
    shape = []
    for field, value in _fields(message):
        if field != 2 or not isinstance(value, bytes):
            raise TableError("a shape is unknown")
        size = dict(_fields(value)).get(1, 0)
        if not isinstance(size, int) or size >> 40:
            raise TableError("a shape is impossible")
        shape.append(size)
    if len(shape) > _MAX_RANK:
        raise TableError("a shape has too many axes")
    return tuple(shape)
