import itertools
import json
import re
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.data import documents, lines, opening
from bert_jax.data.documents import ReadReport, read_documents
from tests.texts import PARAGRAPHS, read, squeeze, tar_of, write

MEMORY_TOLERANCE = 1.1  # peak for four times the text; the issue allows 10 %


@pytest.mark.parametrize("unit", [b"word ", "中".encode(), b"x"])
def test_line_of_10_megabytes_is_cut_in_bounded_memory(tmp_path: Path, unit: bytes):
    path = tmp_path / "a.txt"
    size = 10_000_000 // len(unit) // 100 * 100
    with path.open("wb") as file:
        for _ in range(100):
            file.write(unit * (size // 100))
    report = ReadReport()
    pieces = characters = 0
    tracemalloc.start()
    for document in read_documents(str(path), split_sentences=False, report=report):
        assert all(len(sentence) <= lines.MAX_LINE for sentence in document.sentences)
        assert not any(sentence.strip(unit.decode()) for sentence in document.sentences)  # no character is cut
        pieces += len(document.sentences)
        characters += sum(len(sentence) - sentence.count(" ") for sentence in document.sentences)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.long_lines_cut == 1
    assert (report.invalid_utf8, report.documents) == (0, 1)
    assert characters == len(unit.decode().strip()) * size
    assert pieces > 30
    assert peak < 8e6  # a part holds 2**20 characters, a few copies of which live at once


def test_json_line_over_the_limit_is_left_out_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MAX_WHOLE_LINE", 1 << 22)
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps({"text": PARAGRAPHS[0]}).encode() + b'\n{"text": "')
        for _ in range(10):
            file.write(b"word " * 200_000)
        file.write(b'"}\n' + json.dumps({"text": "word " * 600_000}).encode() + b"\n")  # 3 MB, as a book
    report = ReadReport()
    parts = read(path, split_sentences=False, report=report)
    assert report.documents == 2
    assert report.broken_lines == 1
    assert report.problems == [f"{path}:2: the line is over 32 MiB long"]
    assert sum(len(sentence.split()) for part in parts[1:] for sentence in part.sentences) == 600_000


def make_text(format: str, copies: int) -> Iterator[bytes]:
    wrapped = "\n\n".join(textwrap.fill(paragraph, 70) for paragraph in PARAGRAPHS * 10) + "\n\n"
    one = {
        "prose": wrapped,
        "wrapped without blank lines": wrapped.replace("\n\n", "\n"),
        "sentences": "\n".join(paragraph.split(". ")[0] + "." for paragraph in PARAGRAPHS * 10) + "\n\n",
        "jsonl": json.dumps({"text": wrapped}) + "\n",
        "wikiextractor": '<doc id="1" title="T">\nT\n\n' + "\n".join(PARAGRAPHS * 10) + "\n</doc>\n",
    }[format]
    return itertools.repeat(one.encode(), copies)


@pytest.mark.parametrize(
    ("format", "packing"),
    [
        ("prose", ""),
        ("wrapped without blank lines", ""),
        ("sentences", ""),
        ("jsonl", ""),
        ("wikiextractor", ""),
        ("prose", ".tar.gz"),
    ],
)
def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, format: str, packing: str, monkeypatch: pytest.MonkeyPatch
):
    # Smaller buffers are full with less text; two parts of a document are alive at once.
    monkeypatch.setattr(documents, "MAX_PART", 1 << 18)
    monkeypatch.setattr(lines, "BLOCK", 1 << 18)
    monkeypatch.setattr(lines, "_BATCH", 1 << 16)
    peaks = []
    for copies in (100, 400):  # 0.8 and 3.2 MB
        content = b"".join(make_text(format, copies))
        if packing:
            content = tar_of({f"{i}": content[: len(content) * 100 // copies] for i in range(copies // 100)}, "w:gz")
        path = write(tmp_path / f"{copies}{packing}", content)
        del content
        tracemalloc.start()
        for _ in read_documents(str(path), split_sentences=False):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * MEMORY_TOLERANCE


def test_memory_does_not_grow_with_the_members_of_an_archive(tmp_path: Path):
    peaks = []
    for members in (200, 800):
        path = write(tmp_path / "a.tar", tar_of({f"{i}.txt": PARAGRAPHS[0].encode() for i in range(members)}))
        tracemalloc.start()
        assert sum(1 for _ in read_documents(str(path), split_sentences=False)) == members
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * MEMORY_TOLERANCE


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.text(st.sampled_from("ab .,\n\r\té中\u2028\x0c\0\ufeffX-“"), max_size=300).map(str.encode),
    ),
    unit=st.integers(4, 20),  # bytes; a character takes up to four
)
def test_text_is_the_same_whatever_the_size_of_blocks(
    content: bytes, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    content = b"a" + content  # Hypothesis would make it the start of a compressed file
    path = write(tmp_path / "a.txt", content)
    expected = [
        re.sub("[\x0b\x0c\x85\u2028\u2029]", " ", re.sub("[\0\ufeff]", "", line))
        for line in re.split("\r\n|\r|\n", content.decode(errors="replace"))
    ]
    for block, batch in ((1 << 20, 1 << 18), (unit, unit)):
        monkeypatch.setattr(lines, "BLOCK", block)
        monkeypatch.setattr(lines, "_BATCH", batch)
        monkeypatch.setattr(lines, "MAX_LINE", 1 << 18)  # nothing is cut
        report = ReadReport()
        streams = opening.open_texts(str(path))
        found = [line for batch in lines.read_lines(next(streams), report=report) for line in batch]
        reference = expected.copy()
        while reference and not reference[-1]:
            reference.pop()
        while found and not found[-1]:
            found.pop()
        assert found == reference
        assert report.nul_characters == content.decode(errors="replace").count("\0")
        assert report.invalid_utf8 == content.decode(errors="replace").count("\ufffd") - content.count(b"\xef\xbf\xbd")
        monkeypatch.setattr(lines, "MAX_LINE", batch)  # everything is cut, nothing but white space lost
        if b"\xff" not in content and report.invalid_utf8 == 0:
            streams = opening.open_texts(str(path))
            pieces = "".join(itertools.chain.from_iterable(lines.read_lines(next(streams), report=ReadReport())))
            assert squeeze(pieces) == squeeze("".join(reference))
