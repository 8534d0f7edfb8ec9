"""Hostile and damaged files: an error and nothing else, whatever is flipped, cut or claimed.

500 files a reader are the promise; the default run makes 40 of each, `pytest -m soak` all of them.
"""

import json
import os
import tracemalloc
from typing import Any

import numpy as np
import pytest
from source_helpers import flat, random_source
from test_tf1 import write_release

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.safetensors_file import read_safetensors
from bert_jax.convert.tf1 import read_bundle
from bert_jax.errors import UserError
from bert_jax.finetuning.prediction import load_outputs, save_outputs

FEW, ALL = 40, 500
# What may be allocated beside the file's own size: parsed headers, 256 KB tables of the checksum, lanes of a chunk.
FACTOR, CONSTANT = 8, 8 << 20
CLAIMS = (0, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def damage(whole: bytes, generator: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut, repeat or lengthen; small headers are hit as often as large data."""
    data = bytearray(whole)
    kind = generator.integers(6)
    end = len(data) if generator.random() < 0.5 else min(len(data), 2048)
    if kind == 0:
        for _ in range(generator.integers(1, 4)):
            data[generator.integers(end)] ^= 1 << generator.integers(8)
    elif kind == 1:
        data = data[: generator.integers(len(data))]
    elif kind == 2:
        start = generator.integers(end)
        data[start : start + 16] = generator.bytes(len(data[start : start + 16]))
    elif kind == 3:
        start = generator.integers(end)
        del data[start : start + generator.integers(1, 64)]
    elif kind == 4:
        start = generator.integers(end)
        data[start:start] = data[start : start + generator.integers(1, 64)]
    else:
        start = generator.integers(max(1, end - 8))
        data[start : start + 8] = CLAIMS[generator.integers(len(CLAIMS))].to_bytes(8, "little")
    return bytes(data)


def check(read, path, *, data: bytes, expected) -> bool:
    """Read a damaged file; return whether it was refused. What is taken must be what was there."""
    path.write_bytes(data)
    message = ""
    tracemalloc.start()
    try:
        found = read()
    except UserError as error:
        message, found = str(error), None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < FACTOR * len(data) + CONSTANT
    assert "\n" not in message
    assert len(message) < 3000
    if found is None:
        return True
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        assert array.tobytes() == expected[name].tobytes(), f"wrong weights taken for good: {name}"
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "out"
    export_folder(random_source("small-test"), out=path, report=lambda line: None)
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged-tf1")
    write_release(path, random_source("small-test"))
    return path


def numbers():
    few = pytest.param(FEW, id="few")
    return pytest.mark.parametrize("count", [few, pytest.param(ALL, id="all", marks=pytest.mark.soak)])


@numbers()
def test_damaged_safetensors_of_ours_are_never_taken_for_good(folder, tmp_path, count):
    data = (folder / "model.safetensors").read_bytes()
    expected = {name: np.array(array) for name, array in read_safetensors(folder / "model.safetensors").items()}
    path = tmp_path / "model.safetensors"
    refused = sum(
        check(lambda: read_safetensors(path), path, data=damage(data, np.random.default_rng(number)), expected=expected)
        for number in range(count)
    )
    assert refused > 0.9 * count  # some damage is none: bytes overwritten by themselves


def foreign(folder) -> bytes:
    """The same tensors without our checksums, as any other program writes them."""
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


@numbers()
def test_damaged_headers_of_foreign_safetensors_are_never_taken_for_good(folder, tmp_path, count):
    """The format has no checksums: a bit of the data itself cannot be seen, one of the header can."""
    data = foreign(folder)
    length = int.from_bytes(data[:8], "little") + 8
    source = random_source("small-test")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    path = tmp_path / "model.safetensors"
    refused = 0
    for number in range(count):
        damaged = damage(data[:length], np.random.default_rng(number)) + data[length:]
        refused += check(lambda: flat(load_pretrained(tmp_path)), path, data=damaged, expected=flat(source))
    assert refused > 0.9 * count


@numbers()
@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_damaged_tf1_checkpoints_are_never_taken_for_good(release, tmp_path, part, count):
    prefix = tmp_path / "bert_model.ckpt"
    for file in release.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    expected = {name: np.array(array) for name, array in read_bundle(prefix).items()}
    path = tmp_path / f"bert_model.ckpt.{part}"
    data = path.read_bytes()
    refused = 0
    for number in range(count):
        damaged = damage(data, np.random.default_rng(number))
        # Adam's slots are not read, so what happens to them is nobody's loss: `expected` tells.
        refused += check(lambda: read_bundle(prefix), path, data=damaged, expected=expected)
    assert refused > (0.9 if part == "index" else 0.5) * count


def header_file(path, header, *, data: bytes = b"\0" * 64, length: int | None = None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def tensor(dtype: Any = "F32", shape=(16,), offsets=(0, 64), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


HEADERS = {
    "length of the file's size": (b"{}", 1 << 40),
    "length of all ones": (b"{}", (1 << 64) - 1),
    "no object": (b"[]", None),
    "no JSON": (b"{", None),
    "no UTF-8": (b'{"\xff": 1}', None),
    "deep nesting": (b"[" * 100_000, None),
    "a huge number": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 64]}}', None),
    "the same name twice": (
        b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, '
        b'"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}',
        None,
    ),
    "unknown type": ({"a": tensor(dtype="F8_E4M3", offsets=(0, 16))}, None),
    "type is no text": ({"a": tensor(dtype=["F32"])}, None),
    "a negative size": ({"a": tensor(shape=(-4, -4))}, None),
    "a fractional size": ({"a": tensor(shape=(16.0,))}, None),
    "a size that is true": ({"a": tensor(shape=(16, True))}, None),
    "sizes that overflow 64 bits": ({"a": tensor(shape=(1 << 33, 1 << 33, 16))}, None),
    "too many axes": ({"a": tensor(shape=(16, *[1] * 40))}, None),
    "offsets behind the file": ({"a": tensor(offsets=(64, 128))}, None),
    "offsets backwards": ({"a": tensor(shape=(0,), offsets=(64, 0))}, None),
    "offsets of another size": ({"a": tensor(offsets=(0, 60))}, None),
    "three offsets": ({"a": tensor(offsets=(0, 32, 64))}, None),
    "overlapping tensors": ({"a": tensor(), "b": tensor(shape=(8,), offsets=(32, 64))}, None),
    "a hole": ({"a": tensor(shape=(8,), offsets=(0, 32)), "b": tensor(shape=(4,), offsets=(48, 64))}, None),
    "bytes of nobody": ({"a": tensor(shape=(8,), offsets=(0, 32))}, None),
    "one more field": ({"a": tensor(file="/etc/passwd")}, None),
    "metadata that is a list": ({"__metadata__": [], "a": tensor()}, None),
    "metadata of numbers": ({"__metadata__": {"format": 1}, "a": tensor()}, None),
    "checksums that are no JSON": ({"__metadata__": {"bert_jax.crc32": "x"}, "a": tensor()}, None),
}


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_header_that_lies_is_refused_without_an_allocation(tmp_path, name):
    header, length = HEADERS[name]
    path = header_file(tmp_path / "model.safetensors", header, length=length)
    tracemalloc.start()
    with pytest.raises(UserError, match="not a safetensors file, or damaged"):
        read_safetensors(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * path.stat().st_size + (1 << 20)


@pytest.mark.parametrize("size", range(9))
def test_a_file_too_short_for_a_header_is_refused(tmp_path, size):
    (tmp_path / "x.safetensors").write_bytes(bytes(size))
    with pytest.raises(UserError):
        read_safetensors(tmp_path / "x.safetensors")


def test_what_may_be_absent_or_empty_is_read(tmp_path):
    header_file(tmp_path / "a", {}, data=b"")
    assert read_safetensors(tmp_path / "a") == {}
    header_file(
        tmp_path / "b",
        {"e": tensor(shape=(0, 3), offsets=(0, 0)), "s": tensor(shape=(), offsets=(0, 4))},
        data=b"\0" * 4,
    )
    assert {name: array.shape for name, array in read_safetensors(tmp_path / "b").items()} == {"e": (0, 3), "s": ()}


@numbers()
def test_damaged_outputs_of_a_run_are_never_taken_for_good(tmp_path, count):
    outputs = [np.arange(6, dtype=np.float32).reshape(-1, 2)[: 1 + number % 3] for number in range(20)]
    path = tmp_path / "outputs-dev.npz"
    save_outputs(path, outputs=outputs)
    data, expected = path.read_bytes(), {str(number): array for number, array in enumerate(outputs)}

    def read():
        return {str(number): array for number, array in enumerate(load_outputs(path))}

    refused = sum(
        check(read, path, data=damage(data, np.random.default_rng(number)), expected=expected)
        for number in range(count)
    )
    assert refused > 0.5 * count  # a time in the archive's directory is nobody's loss


def test_a_pipe_in_the_place_of_weights_or_outputs_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_safetensors, load_outputs):
        with pytest.raises(UserError, match="it is a pipe, not a regular file"):
            read(tmp_path / "pipe")


@numbers()
def test_damaged_json_beside_the_weights_is_told_or_harmless(folder, tmp_path, count):
    """config.json, tokenizer_config.json, vocab.txt: an error in one line, or the same model."""
    files = [file for file in folder.iterdir() if file.is_file()]
    for file in files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = flat(load_pretrained(folder))
    refused: list[str] = []
    for number in range(count):
        generator = np.random.default_rng(number)
        name = ("config.json", "tokenizer_config.json", "vocab.txt")[number % 3]
        (tmp_path / name).write_bytes(damage((folder / name).read_bytes(), generator))
        try:
            found = flat(load_pretrained(tmp_path))
        except UserError as error:
            refused.append(str(error))
        else:
            assert found.keys() == weights.keys()
            assert all(found[key].tobytes() == weights[key].tobytes() for key in weights)
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert 0 < len(refused) < count
    assert not any("\n" in line for line in refused)
