"""Archives made to exhaust memory, time or the stack: the text in them, or one line; memory and work are bounded."""

import bz2
import gzip
import io
import lzma
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from bert_jax.data import zip_members
from bert_jax.data.opening import MAX_LEVELS, ByteStream, open_texts
from bert_jax.errors import UserError
from bert_jax.progress import ByteProgress
from tests.texts import tar_of

TEXT = b"A river. It was measured at its source.\n" * 20
MOST_MEMORY = 48 << 20
MOST_TEXT = 64 << 20  # the largest text in these archives
MOST_WORK = 2 * MOST_TEXT  # bytes that are read: of the file, and of what is in it at every level
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 1),
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": lambda data: zstandard.compress(data, 1),
    "tar": lambda data: tar_of({"inner": data}),
}


def read_all(path: Path) -> tuple[list[bytes], str]:
    """Return the texts of a file, or why it was refused, within bounds of memory and work."""
    texts, reason = [], ""
    work, fill = 0, ByteStream._fill

    def counted(stream: ByteStream, size: int) -> bytes:
        nonlocal work
        part = fill(stream, size)
        work += len(part)
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByteStream, "_fill", counted)
        tracemalloc.start()
        try:
            for stream in open_texts(str(path)):
                text = b""
                while block := stream.read(1 << 20):
                    text = text or block
                texts.append(text)
        except UserError as error:
            reason = str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert 0 < work < MOST_WORK
    assert "\n" not in reason
    return texts, reason


@pytest.mark.parametrize("kind", list(PACK))
def test_archives_inside_each_other_are_read_to_a_depth_and_refused_beyond(tmp_path: Path, kind: str):
    data = TEXT
    for level in range(1, MAX_LEVELS + 3):
        data = PACK[kind](data)
        path = tmp_path / f"a{level}"
        path.write_bytes(data)
        texts, reason = read_all(path)
        if level <= MAX_LEVELS:
            assert (texts, reason) == ([TEXT], "")
        else:
            assert "inside each other: unpack it first" in reason


@pytest.mark.parametrize("kind", ["gz", "tar"])
def test_three_hundred_levels_are_one_line(tmp_path: Path, kind: str):
    data = b"x"
    for _ in range(300):
        data = PACK[kind](data) if kind == "gz" else nested_tar(data)
    (tmp_path / "a").write_bytes(data)
    assert "inside each other" in read_all(tmp_path / "a")[1]


def nested_tar(data: bytes) -> bytes:
    header = tarfile.TarInfo("inner")
    header.size = len(data)
    return header.tobuf() + data + bytes(-len(data) % 512 + 1024)


def test_an_xz_file_with_a_dictionary_of_4_gb_is_refused(tmp_path: Path):
    data = bytearray(lzma.compress(TEXT, preset=0))
    length = 4 * (data[12] + 1)
    assert data[14:16] == b"\x21\x01"  # LZMA2 with one byte of properties, which is the dictionary's size
    data[16] = 40  # 4 GiB - 1
    data[12 + length - 4 : 12 + length] = zlib.crc32(data[12 : 12 + length - 4]).to_bytes(4, "little")
    (tmp_path / "a.xz").write_bytes(data)
    assert "a.xz needs more memory to decompress" in read_all(tmp_path / "a.xz")[1]


def test_bombs_are_read_in_constant_memory(tmp_path: Path):
    for kind in ("gz", "bz2", "xz", "zst"):
        data = PACK[kind](b"a" * MOST_TEXT)
        (tmp_path / kind).write_bytes(data)
        texts, reason = read_all(tmp_path / kind)
        assert (len(texts), reason) == (1, "")


def test_zeros_between_streams_are_skipped_and_other_bytes_refused(tmp_path: Path):
    for kind in ("gz", "xz"):
        packed = PACK[kind](TEXT)
        (tmp_path / "a").write_bytes(packed + bytes(512) + packed + bytes(70_000))
        assert read_all(tmp_path / "a")[1] == ""
        (tmp_path / "a").write_bytes(packed + b"more")
        assert "damaged or cut short" in read_all(tmp_path / "a")[1]


def header(kind: bytes, *, size: int) -> bytes:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


EXTENSIONS = {"long name": b"L", "long link": b"K", "pax": b"x", "global pax": b"g", "solaris": b"X"}


@pytest.mark.parametrize("kind", list(EXTENSIONS))
@pytest.mark.parametrize("size", [2 << 20, 3 << 30, (8 << 30) - 1, 1 << 60])
@pytest.mark.parametrize("is_there", [True, False])
def test_giant_headers_of_tar_are_refused_unread(tmp_path: Path, kind: str, size: int, is_there: bool):
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header(EXTENSIONS[kind], size=size))
        if is_there:  # a hole: the file claims to have these bytes
            file.truncate(min(size, 1 << 40) + 1024)
    assert "a.tar is damaged or cut short (tar: a header of" in read_all(tmp_path / "a.tar")[1]


def test_a_chain_of_headers_is_refused(tmp_path: Path):
    name = header(b"L", size=4) + b"abc\0".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(name * 5000 + tar_of({"a.txt": TEXT}))
    assert "hundreds of headers for one member" in read_all(tmp_path / "a.tar")[1]


@pytest.mark.parametrize(
    "records",
    [
        {"size": "-1024"},
        {"size": "9" * 30},
        {"size": "x"},
        {"mtime": "nan", "uid": "inf"},
        {"path": "../" * 400 + "etc/passwd"},
        {"path": "a\0b"},
        {"GNU.sparse.map": "0,9" * 2000},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18},
        {"GNU.sparse.size": "-5"},
        {"hdrcharset": "no such"},
    ],
    ids=lambda records: " ".join(records),
)
def test_absurd_attributes_of_a_member_are_read_or_refused(tmp_path: Path, records: dict[str, str]):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size, member.pax_headers = len(TEXT), records
        archive.addfile(member, io.BytesIO(TEXT))
    (tmp_path / "a.tar").write_bytes(data.getvalue())
    read_all(tmp_path / "a.tar")


def zip_of(files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return bytearray(data.getvalue())


def test_names_in_a_zip_that_are_not_utf8_are_read_or_refused(tmp_path: Path):
    data = zip_of({"a.txt": TEXT})
    for flags, name in ((data.index(b"PK\x03\x04") + 7, 30), (data.index(b"PK\x01\x02") + 9, 46)):
        data[flags] |= 8  # the name is UTF-8
        start = flags - (7 if name == 30 else 9) + name
        data[start : start + 1] = b"\xff"
    (tmp_path / "a.zip").write_bytes(data)
    assert "a.zip is damaged or cut short ('utf-8'" in read_all(tmp_path / "a.zip")[1]


def test_a_member_of_a_zip_without_a_name_is_read(tmp_path: Path):
    unnamed = zipfile.ZipInfo("a")
    unnamed.filename = ""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(unnamed, TEXT)
        archive.writestr("folder/", b"")
        archive.writestr("b.txt", TEXT)
    assert read_all(tmp_path / "a.zip") == ([TEXT, TEXT], "")


def test_a_zip_with_a_dictionary_of_4_gb_is_refused(tmp_path: Path):
    data = zip_of({"a.txt": TEXT}, method=zipfile.ZIP_LZMA)
    (tmp_path / "a.zip").write_bytes(data)
    assert read_all(tmp_path / "a.zip") == ([TEXT], "")
    start = 30 + len("a.txt") + 5
    data[start : start + 4] = b"\xff" * 4
    (tmp_path / "a.zip").write_bytes(data)
    assert "a dictionary of 4294967295 bytes in 'a.txt'" in read_all(tmp_path / "a.zip")[1]


def test_the_directory_of_a_zip_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zip_members, "_MAX_READ", 1 << 12)
    (tmp_path / "few.zip").write_bytes(zip_of({f"{number}.txt": TEXT for number in range(50)}))
    assert len(read_all(tmp_path / "few.zip")[0]) == 50
    (tmp_path / "many.zip").write_bytes(zip_of({f"{number}.txt": TEXT for number in range(100)}))
    assert "many.zip is damaged or cut short (a directory of" in read_all(tmp_path / "many.zip")[1]


def test_a_zip_within_an_archive_takes_a_limited_space_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.zip.gz").write_bytes(gzip.compress(zip_of({"a.txt": bytes(9 << 20)})))
    assert len(read_all(tmp_path / "a.zip.gz")[0]) == 1
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: SIM115, PTH123
    assert "a.zip.gz cannot be copied to" in read_all(tmp_path / "a.zip.gz")[1]
    monkeypatch.setattr(zip_members, "_MAX_COPY", 1 << 12)
    assert "a.zip.gz is a zip archive of more than" in read_all(tmp_path / "a.zip.gz")[1]


def test_fifty_damaged_archives_are_read_or_refused(tmp_path: Path):
    whole = tar_of({"a.txt": TEXT, "b" * 150: TEXT, "c.txt": TEXT})
    refused = 0
    for number in range(50):
        generator = np.random.default_rng(number)
        data = bytearray(whole)
        for _ in range(generator.integers(1, 4)):
            data[generator.integers(len(data))] ^= 1 << generator.integers(8)
        (tmp_path / "a.tar").write_bytes(data[: None if number % 3 else generator.integers(len(data))])
        refused += bool(read_all(tmp_path / "a.tar")[1])
    assert 15 < refused < 50


def test_work_without_progress_is_reported_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bert_jax.progress.INTERVAL_SECONDS", 0.02)
    lines: list[str] = []
    shown = ByteProgress("reading", total=1000, report=lines.append)
    deadline = time.monotonic() + 10
    while not lines and time.monotonic() < deadline:
        time.sleep(0.01)
    shown.finish()
    assert lines[0] == "reading: 0% of 1.0 kB, 0.0 MB/s"
