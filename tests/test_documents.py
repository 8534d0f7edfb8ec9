import bz2
import gzip
import html
import io
import itertools
import json
import lzma
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_jax.data import documents, lines, opening, tfds_text
from bert_jax.data import sentences as sentences_module
from bert_jax.data.documents import Document, ReadReport, find_sources, read_documents, read_source, split_paragraph
from bert_jax.errors import UserError

MEMORY_TOLERANCE = 1.1  # peak for four times the text; the issue allows 10 %

PARAGRAPHS = [
    "It was a bright cold day in April, and the clocks were striking thirteen. Nobody on the stairs looked up at all.",
    "The well-known lighthouse keeper (who had seen it all before) climbed the stairs for the last time; he was tired.",
    "“Was he?” she asked. Nobody answered her, so she went on writing her letter by the light of a single candle.",
    "On the far side of the harbour lay three ships, each of them older than anyone who had sailed in one of them.",
    "A paragraph of one sentence can be quite short.",
    "Then there are those which go on and on, with comma after comma, as if their author had been paid by the word, "
    "which may well have been the case. Others stop early. This one has several sentences, and the last of them ends "
    "in the middle of the third line, or wherever the width of the page makes it end.",
]

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(inputs: str | list[str] | Path, **options) -> list[Document]:
    return list(read_documents(str(inputs) if isinstance(inputs, Path) else inputs, **options))


def paragraphs_of(path: Path, **options) -> list[list[str]]:
    return [document.sentences for document in read(path, split_sentences=False, **options)]


def squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# Formats found and read


@pytest.fixture(scope="module")
def novels(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("novels")
    with tarfile.open(shared_data / "pretrain_en" / "100_english_novels.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "corpus"


@pytest.mark.parametrize(
    ("pattern", "count", "found"),
    [
        ("pretrain_en/wiki_0?", 4, "wikiextractor"),
        ("pretrain_en/google_bert_sample_text.txt", 1, "sentences"),
        ("pretrain_zh/CLUECorpusSmall_bert_sampled.txt", 1, "sentences"),
        ("pretrain_en/100_english_novels.README.md", 1, "prose"),
    ],
)
def test_format_of_each_shared_file_is_found(shared_data: Path, pattern: str, count: int, found: str):
    report = ReadReport()
    assert read(str(shared_data / pattern), report=report)
    assert list(report.formats.values()) == [found] * count
    assert not report.warnings()


def test_each_novel_is_prose_and_one_document(novels: Path):
    report = ReadReport()
    documents = read(novels, split_sentences=False, report=report)
    assert set(report.formats.values()) == {"prose"}
    assert len(report.formats) == report.documents == len({document.key for document in documents}) == 100
    # Wrapped or not, a paragraph is some sentences long: unjoined lines would be 60 characters, a joined novel 10^6.
    for key, parts in itertools.groupby(documents, key=lambda document: document.key):
        lengths = [len(paragraph) for part in parts for paragraph in part.sentences]
        assert 100 < sum(lengths) / len(lengths) < 1500, key


@pytest.mark.parametrize("name", ["Eliot_Daniel_1876", "Gaskell_Wives_1865", "Thackeray_Pendennis_1850"])
@pytest.mark.parametrize("width", [50, 72, 100])
def test_wrapping_a_novel_changes_no_paragraph(novels: Path, tmp_path: Path, name: str, width: int):
    text = (novels / f"{name}.txt").read_text(encoding="utf-8-sig")[:400_000]
    paragraphs = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    fill = textwrap.TextWrapper(width=width, break_long_words=False, break_on_hyphens=False).fill
    plain = write(tmp_path / "plain.txt", "\n\n".join(paragraphs))
    wrapped = write(tmp_path / "wrapped.txt", "\n\n".join(map(fill, paragraphs)))
    assert paragraphs_of(plain) == [paragraphs]
    assert [list(map(squeeze, found)) for found in paragraphs_of(wrapped)] == [list(map(squeeze, paragraphs))]
    # Without blank lines a paragraph's end can only be told by its last line's length.
    [found] = paragraphs_of(write(tmp_path / "dense.txt", "\n".join(map(fill, paragraphs))))
    assert len(set(found) & set(paragraphs)) > 0.75 * len(set(paragraphs))


def test_a_few_wrapped_lines_are_prose(tmp_path: Path):
    assert paragraphs_of(write(tmp_path / "a.txt", textwrap.fill(PARAGRAPHS[5], 60))) == [[PARAGRAPHS[5]]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("width", [60, 10_000])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path, end: str, mark: bytes, width: int):
    text = "\n\n".join(textwrap.fill(paragraph, width, break_on_hyphens=False) for paragraph in PARAGRAPHS) + "\n"
    path = write(tmp_path / "a.txt", mark + text.replace("\n", end).encode())
    assert paragraphs_of(path) == [PARAGRAPHS]


def test_files_put_together_are_joined_each_in_its_own_way(tmp_path: Path):
    wrapped = "\n\n".join(textwrap.fill(paragraph, 60, break_on_hyphens=False) for paragraph in PARAGRAPHS * 500)
    plain = "\n".join(PARAGRAPHS * 500)
    path = write(tmp_path / "a.txt", plain + "\n\n" + wrapped + "\n\n" + plain)
    found = [paragraph for part in paragraphs_of(path) for paragraph in part]
    assert sum(paragraph in PARAGRAPHS for paragraph in found) > 0.95 * 9000


def test_soft_hyphens_go_and_hyphens_stay(tmp_path: Path):
    text = "The in\xad\nterest of the well-\nknown story, which is told by everybody -\nor so it\nseems - is great.\n"
    [[paragraph]] = paragraphs_of(write(tmp_path / "a.txt", text))
    assert paragraph == (
        "The interest of the well-known story, which is told by everybody - or so it seems - is great."
    )


def test_wrapped_chinese_is_joined_without_spaces(tmp_path: Path, shared_data: Path):
    data = json.loads((shared_data / "pretrain_zh" / "cmrc2018_dev.json").read_text())
    contexts = [squeeze(part["context"]) for item in data["data"][:200] for part in item["paragraphs"]]
    text = "\n\n".join("\n".join(context[i : i + 40] for i in range(0, len(context), 40)) for context in contexts)
    [found] = paragraphs_of(write(tmp_path / "a.txt", text))
    assert [squeeze(paragraph) for paragraph in found] == contexts
    assert not any(re.search("[\u3000-\u9fff] [\u3000-\u9fff]", paragraph) for paragraph in found)


def test_sentence_a_line_is_kept_as_it_is(shared_data: Path):
    path = shared_data / "pretrain_zh" / "CLUECorpusSmall_bert_sampled.txt"
    expected = [
        [line.strip() for line in block.split("\n") if line.strip()]
        for block in re.split(r"\n\s*\n", path.read_text())
        if block.strip()
    ]
    for split_sentences in (True, False):
        found = read(path, split_sentences=split_sentences, language="zh")
        assert [document.sentences for document in found] == expected
        assert all(document.is_split for document in found)
    assert [document.key for document in found] == [f"{path.name}#{index}" for index in range(2500)]


def test_wikiextractor_gives_a_document_an_article_without_its_title(shared_data: Path):
    path = shared_data / "pretrain_en" / "wiki_00"
    found = read(path, split_sentences=False)
    articles = re.findall(r'<doc [^\n]*title="([^"]*)">\n(.*?)</doc>', path.read_text(), re.DOTALL)
    assert len(found) == len(articles) == 37
    for document, (title, text) in zip(found, articles, strict=True):
        expected = [line.strip() for line in text.split("\n") if line.strip()]
        assert expected[0] == title
        assert document.sentences == [html.unescape(line) for line in expected[1:]]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ""])
def test_json_lines_give_a_document_an_object(tmp_path: Path, suffix: str):
    texts = ["\n".join(PARAGRAPHS), "A line separator\u2028stays inside of the line. Really.", "", PARAGRAPHS[0]]
    content = "".join(json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts))
    found = paragraphs_of(write(tmp_path / f"wiki{suffix}", content))
    assert found == [PARAGRAPHS, ["A line separator stays inside of the line. Really."], [PARAGRAPHS[0]]]


def test_wikiextractor_json_gives_documents_without_their_titles(tmp_path: Path):
    records = [{"id": "1", "url": "u", "title": "Oak", "text": "Oak\n\nAn oak is a tree. It grows."}]
    path = write(tmp_path / "wiki_00", "\n".join(map(json.dumps, records)))
    assert paragraphs_of(path) == [["An oak is a tree. It grows."]]


def test_broken_json_lines_are_counted_and_named(tmp_path: Path):
    good = json.dumps({"text": PARAGRAPHS[0]})
    path = write(
        tmp_path / "a.jsonl", "\n".join([good, '{"text": "cut', "", "[1]", '{"title": "x"}', '{"text": 3}', good])
    )
    report = ReadReport()
    assert len(read(path, report=report)) == 2
    assert report.broken_lines == 4
    assert [problem.split(":")[1] for problem in report.problems] == ["2", "4", "5", "6"]
    assert "title" in report.problems[2]


def test_json_array_is_refused(tmp_path: Path):
    path = write(tmp_path / "a.json", json.dumps([{"text": "One."}, {"text": "Two."}], indent=0))
    with pytest.raises(UserError, match=r"a\.json is a JSON array: write its objects one a line, as with: jq -c"):
        read(path)


@pytest.mark.parametrize(
    "content", ['{"text": "cut\n{"text": "cut\n', '{"t": "x"}\n', '{\n "text": "Spread out."\n}\n']
)
def test_json_without_one_good_line_is_refused(tmp_path: Path, content: str):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=r"no line of .*a\.json is a JSON object with a 'text' \(line 1: "):
        read(path)


def test_json_surrogates_and_nuls_are_replaced_and_counted(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"text": "A lone \\ud800 one, a \\ud83d\\ude00 pair and a \\u0000 NUL."}\n')
    report = ReadReport()
    [document] = read(path, report=report)
    assert document.sentences == ["A lone \ufffd one, a 😀 pair and a  NUL."]
    assert (report.invalid_utf8, report.nul_characters) == (1, 1)


def test_format_can_be_given(tmp_path: Path):
    path = write(tmp_path / "a.txt", "One line. Two sentences.\nAnother line.\n\nA second document.\n")
    assert [document.sentences for document in read(path, format="sentences")] == [
        ["One line. Two sentences.", "Another line."],
        ["A second document."],
    ]
    assert [document.sentences for document in read(path, format="prose")] == [
        ["One line.", "Two sentences.", "Another line.", "A second document."]
    ]
    with pytest.raises(UserError, match=r"data\.format: 'markdown' is not known: type auto, prose, sentences, jsonl"):
        read(path, format="markdown")


# Compression and archives


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("is_named", [True, False])
def test_compression_changes_nothing(shared_data: Path, tmp_path: Path, suffix: str, is_named: bool):
    plain = shared_data / "pretrain_en" / "wiki_01"
    content = plain.read_bytes()
    half = len(content) // 2
    packed = COMPRESSIONS[suffix](content[:half]) + COMPRESSIONS[suffix](content[half:])  # two members, one file
    path = write(tmp_path / ("wiki_01" + suffix * is_named), packed)
    report = ReadReport()
    assert [d.sentences for d in read(path, report=report)] == [d.sentences for d in read(plain)]
    assert report.bytes == len(content)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("inner", ["txt", "tar"])
def test_cut_or_damaged_compression_is_refused(tmp_path: Path, suffix: str, inner: str):
    content = "".join(f"{i} {paragraph}\n\n" for i in range(2000) for paragraph in PARAGRAPHS).encode()
    content = tar_of({"a.txt": content}) if inner == "tar" else content
    packed = COMPRESSIONS[suffix](content)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0x10
    for damaged in [b"", packed[:5], packed[: len(packed) // 3], packed[: len(packed) - 1], bytes(flipped), content]:
        path = write(tmp_path / f"a.{inner}{suffix}", damaged)
        with pytest.raises(UserError, match=rf"a\.{inner}\{suffix} is damaged or cut short .*fetch or make it again"):
            read(path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archive_gives_each_member_in_its_own_format(tmp_path: Path, mode: str):
    members = {
        "corpus/prose.txt": "\n\n".join(PARAGRAPHS).encode(),
        "./corpus/lines.jsonl.gz": gzip.compress(json.dumps({"text": PARAGRAPHS[0]}).encode()),
        "corpus/._prose.txt": b"what another system keeps about the file",
        "corpus/" + "long/" * 40 + "wiki_00": b'<doc id="1" title="T">\nT\n\nA text. More.\n</doc>\n',
        "corpus/picture.png": bytes(range(256)) * 10,
    }
    path = write(tmp_path / "a.tar", tar_of(members, mode))
    report = ReadReport()
    found = read(path, split_sentences=False, report=report)
    assert [document.sentences for document in found] == [PARAGRAPHS, [PARAGRAPHS[0]], ["A text. More."]]
    assert [document.key for document in found] == [
        "a.tar/corpus/prose.txt#0",
        "a.tar/corpus/lines.jsonl.gz#0",
        "a.tar/corpus/" + "long/" * 40 + "wiki_00#0",
    ]
    assert report.formats == {"a.tar": "jsonl, prose, wikiextractor"}
    assert report.not_text == 1


def test_cut_or_damaged_archive_is_refused(tmp_path: Path):
    content = "\n\n".join(PARAGRAPHS).encode()
    whole = tar_of({"a.txt": content, "b.txt": content})
    second = whole.index(b"b.txt")
    bad_header = bytearray(whole)
    bad_header[second + 150] ^= 0xFF  # within its checksum
    for damaged in [whole[: second + 300], whole[:second], whole[: second + 512 + 400], bytes(bad_header)]:
        with pytest.raises(UserError, match=r"a\.tar is damaged or cut short|b\.txt is damaged or cut short"):
            read(write(tmp_path / "a.tar", damaged))


# Bad input


def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path):
    text = ("Caf\xe9s of the city, one by one, are closed on Sundays. " * 50).encode("latin-1")
    report = ReadReport()
    [document] = read(write(tmp_path / "a.txt", text), report=report)
    assert report.invalid_utf8 == 50
    assert "Caf\ufffds" in document.sentences[0]
    assert report.warnings() == ["50 invalid UTF-8 sequence(s) replaced by U+FFFD"]


def test_nul_characters_are_removed_and_counted(tmp_path: Path):
    report = ReadReport()
    [document] = read(write(tmp_path / "a.txt", "A text that goes on\0\0 for some time, and ends.\0"), report=report)
    assert document.sentences == ["A text that goes on for some time, and ends."]
    assert report.nul_characters == 3


@pytest.mark.parametrize(
    "content",
    [
        Path(sys.executable).read_bytes()[:1_000_000],
        "Привет, мир. Это текст.".encode("cp1251") * 9,
        "This is text in another encoding.".encode("utf-16") * 9,
        "这是一段中文文本。".encode("gbk") * 9,
    ],
    ids=["program", "cp1251", "utf-16", "gbk"],
)
def test_file_that_is_not_utf8_is_left_out_and_named(tmp_path: Path, content: bytes):
    write(tmp_path / "bad.txt", content)
    with pytest.raises(UserError, match=r"no text in input '.*' \(1 file\(s\) left out: not UTF-8 text; .*bad\.txt"):
        read(tmp_path)
    write(tmp_path / "good.txt", PARAGRAPHS[0])
    report = ReadReport()
    assert [document.key for document in read(tmp_path, report=report)] == ["good.txt#0"]
    assert report.not_text == 1
    assert "bad.txt" in report.problems[0]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf", b"\0\n"])
def test_empty_corpus_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(UserError, match=r"no text in input .*give text files in UTF-8"):
        read(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize("unit", [b"word ", "中".encode(), b"x"])
def test_line_of_100_megabytes_is_cut_in_bounded_memory(tmp_path: Path, unit: bytes):
    path = tmp_path / "a.txt"
    size = 100_000_000 // len(unit) // 100 * 100
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
    assert pieces > 300
    assert peak < 20e6


def test_json_line_of_100_megabytes_is_left_out_and_the_next_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps({"text": PARAGRAPHS[0]}).encode() + b'\n{"text": "')
        for _ in range(100):
            file.write(b"word " * 200_000)
        file.write(b'"}\n' + json.dumps({"text": "word " * 600_000}).encode() + b"\n")  # 3 MB, as a book
    report = ReadReport()
    parts = read(path, split_sentences=False, report=report)
    assert report.documents == 2
    assert report.broken_lines == 1
    assert report.problems == [f"{path}:2: the line is over 32 MiB long"]
    assert sum(len(sentence.split()) for part in parts[1:] for sentence in part.sentences) == 600_000


def test_document_over_a_megabyte_comes_in_parts(novels: Path):
    path = novels / "Lytton_Novel_1853.txt"
    parts = read(path, split_sentences=False)
    assert [part.key for part in parts] == ["Lytton_Novel_1853.txt#0"] * 3
    assert all(sum(map(len, part.sentences)) < 1.1 * documents.MAX_PART for part in parts)
    assert squeeze("".join("".join(part.sentences) for part in parts)) == squeeze(path.read_text("utf-8-sig"))


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
    expected = re.sub("[\0\ufeff]", "", content.decode(errors="replace"))
    for block, batch in ((1 << 20, 1 << 18), (unit, unit)):
        monkeypatch.setattr(lines, "BLOCK", block)
        monkeypatch.setattr(lines, "_BATCH", batch)
        monkeypatch.setattr(lines, "MAX_LINE", 1 << 18)  # nothing is cut
        report = ReadReport()
        streams = opening.open_texts(str(path))
        found = [line for batch in lines.read_lines(next(streams), report=report) for line in batch]
        reference = re.split("\r\n|\r|\n", re.sub("[\x0b\x0c\x85\u2028\u2029]", " ", expected))
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


# Sources


def test_sources_are_the_same_in_any_order_and_place(tmp_path: Path):
    names = ["b/wiki_10.txt", "b/wiki_9.txt", "a.txt", "c/d/e.txt"]
    for root in ("here", "there"):
        for name in reversed(names):
            write(tmp_path / root / name, PARAGRAPHS[0])
        write(tmp_path / root / ".hidden", PARAGRAPHS[0])
    here, there = tmp_path / "here", tmp_path / "there"
    expected = [(name, len(PARAGRAPHS[0])) for name in sorted(names)]
    for inputs in (
        str(here),
        str(there),
        f"{here}/**/*.txt",
        f"{here}/b, {here}/a.txt ,{here}/c/*",
        [str(here / "c"), str(here / "b" / ".." / "b"), str(here / "*.txt"), str(here / "a.txt")],
    ):
        assert [(source.name, source.size) for source in find_sources(inputs)] == expected
    sources = find_sources(str(here))
    assert pickle.loads(pickle.dumps(sources)) == sources
    assert [next(read_source(source)).key for source in sources] == [f"{name}#0" for name, _ in expected]


def test_names_with_commas_and_brackets_are_files_first(tmp_path: Path):
    path = write(tmp_path / "a, [b]*.txt", PARAGRAPHS[0])
    assert [source.path for source in find_sources(str(path))] == [str(path)]


def test_links_between_folders_are_followed_once(tmp_path: Path):
    write(tmp_path / "corpus" / "a.txt", PARAGRAPHS[0])
    write(tmp_path / "elsewhere" / "b.txt", PARAGRAPHS[0])
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "circle").symlink_to(tmp_path / "corpus")
    os.mkfifo(tmp_path / "corpus" / "pipe")
    assert [source.name for source in find_sources(str(tmp_path / "corpus"))] == ["a.txt", "link/b.txt"]
    (tmp_path / "corpus" / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cannot read .*dead"):
        find_sources(str(tmp_path / "corpus"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("nowhere/*.txt", r"data\.input: 'nowhere/\*\.txt' matches no file: name a file, a folder, a glob in quotes"),
        ("gs://bucket/wiki/*", "matches no file: copy it to a local disk"),
        (" , ", "data.input is empty: name files"),
        ([], "data.input is empty: name files"),
        ("tfds:", "'tfds:' names no data set"),
    ],
)
def test_input_that_matches_nothing_is_refused(inputs: str | list[str], message: str):
    with pytest.raises(UserError, match=message):
        find_sources(inputs)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_named(tmp_path: Path):
    path = write(tmp_path / "a.txt", PARAGRAPHS[0])
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied"):
        read(path)


def test_reports_of_sources_merge_to_the_report_of_all(tmp_path: Path):
    write(tmp_path / "a.txt", "A NUL\0 and so on, and so on.\n")
    write(tmp_path / "b.jsonl", '{"text": "One. Two."}\nbroken\n')
    write(tmp_path / "c.bin", bytes(range(128, 256)) * 9)
    together, merged = ReadReport(), ReadReport()
    read(tmp_path, report=together)
    for source in find_sources(str(tmp_path)):
        report = ReadReport()
        list(read_source(source, report=report))
        merged.merge(report)
    assert merged == together
    assert (merged.documents, merged.paragraphs, merged.broken_lines, merged.not_text) == (2, 2, 1, 1)
    assert merged.formats == {"a.txt": "prose", "b.jsonl": "jsonl"}
    assert len(merged.problems) == 2


# Sentences


def test_paragraph_is_split_into_its_sentences():
    assert split_paragraph("Mr. Smith paid 3.50 for it. Was it worth it? Yes!", language="en") == [
        "Mr. Smith paid 3.50 for it.",
        "Was it worth it?",
        "Yes!",
    ]
    assert split_paragraph("据悉，线路不变。记者获悉！", language="zh") == ["据悉，线路不变。", "记者获悉！"]
    assert split_paragraph(" \n", language="en") == []
    assert split_paragraph("A lone \ud800 one. Another.", language="en") == ["A lone \ufffd one.", "Another."]


def test_splitting_later_equals_splitting_at_once(shared_data: Path):
    path = shared_data / "pretrain_en" / "wiki_02"
    later = read(path, split_sentences=False)
    assert not any(document.is_split for document in later)
    assert [d.sentences for d in read(path)] == [
        [sentence for paragraph in document.sentences for sentence in split_paragraph(paragraph, language="en")]
        for document in later
    ]


def test_splitting_a_long_paragraph_loses_nothing_and_takes_linear_time(shared_data: Path):
    data = json.loads((shared_data / "pretrain_zh" / "cmrc2018_dev.json").read_text())
    text = "".join(part["context"] for item in data["data"] for part in item["paragraphs"])  # 430,000 characters
    sentences = split_paragraph(text, language="zh")  # minutes, were it quadratic
    assert squeeze("".join(sentences)) == squeeze(text)
    assert max(map(len, sentences)) <= sentences_module.WINDOW
    # Windows cut where whole paragraphs do not: the sentences of short paragraphs are the reference.
    short = [
        s
        for item in data["data"]
        for part in item["paragraphs"]
        for s in split_paragraph(part["context"], language="zh")
    ]
    assert len(set(short) & set(sentences)) > 0.9 * len(set(short))


# TFDS


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class SmallText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "title": tfds.features.Text(),
                "id": tfds.features.Scalar(np.int32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))  # type: ignore

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(300), "test": self._generate_examples(5)}

        def _generate_examples(self, count: int):
            for index in range(count):
                text = f"Document {index} begins. {PARAGRAPHS[0]}\n\n{PARAGRAPHS[1]}\n"
                yield index, {"text": text, "title": f"The title is {index}.", "id": index}

    folder = tmp_path_factory.mktemp("tfds")
    builder = SmallText(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def test_tfds_directory_is_read_once_in_ranges(tfds_folder: Path, monkeypatch: pytest.MonkeyPatch):
    item = f"tfds:{tfds_folder}/small_text/1.0.0"
    [whole] = find_sources(item)
    expected = list(read_source(whole, split_sentences=False))
    assert len(expected) == 300
    assert {int(document.sentences[0].split()[1]) for document in expected} == set(range(300))
    assert all(document.sentences[1] == PARAGRAPHS[1] for document in expected)
    monkeypatch.setattr(tfds_text, "RANGE_BYTES", 10_000)
    monkeypatch.setattr(tfds_text, "_BATCH_BYTES", 1000)
    sources = find_sources(item)
    assert len(sources) > 5
    assert len({source.name for source in sources}) == len(sources)
    report = ReadReport()
    ranges = [d for source in sources for d in read_source(source, split_sentences=False, report=report)]
    assert [document.sentences for document in ranges] == [document.sentences for document in expected]
    assert len({document.key for document in ranges}) == report.documents == 300
    assert abs(sum(source.size for source in sources) - whole.size) < len(sources)
    assert str(tfds_folder) not in ranges[0].key  # keys do not change with the place


def test_tfds_feature_can_be_named(tfds_folder: Path):
    found = read(f"tfds:{tfds_folder}/small_text/1.0.0:title")
    assert {sentence for document in found for sentence in document.sentences} == {
        f"The title is {index}." for index in range(300)
    }
    for feature, what in (("body", "does not exist"), ("id", "is not text")):
        with pytest.raises(UserError, match=rf"feature '{feature}' .* {what}: .*\(text features: text, title\)"):
            find_sources(f"tfds:{tfds_folder}/small_text/1.0.0:{feature}")


def test_tfds_name_is_read_without_tensorflow(tfds_folder: Path):
    code = (
        "import sys; from bert_jax.data.documents import read_documents;"
        "print(sum(1 for _ in read_documents('tfds:small_text')), 'tensorflow' in sys.modules)"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(tfds_folder), "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["300", "False"]


def test_tfds_data_set_that_cannot_be_read_is_refused(tfds_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no TFDS data set 'no_such_set' .*TFDS_DATA_DIR"):
        find_sources("tfds:no_such_set")
    with pytest.raises(UserError, match=r"no TFDS data set '.*' .*dataset_info\.json"):
        find_sources(f"tfds:{tmp_path}")
    folder = shutil.copytree(tfds_folder / "small_text" / "1.0.0", tmp_path / "small_text" / "1.0.0")
    info = folder / "dataset_info.json"
    original = info.read_text()
    info.write_text(original.replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"not in a random-access format: .*array_record"):
        find_sources(f"tfds:{folder}")
    info.write_text(original)
    [source] = find_sources(f"tfds:{folder}")
    [shard] = folder.glob("*train*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"TFDS data set '.*' is damaged .*prepare it again"):
        list(read_source(source))
