import html
import itertools
import json
import os
import pickle
import re
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data import documents
from bert_jax.data.documents import ReadReport, find_sources, read_source
from bert_jax.errors import UserError
from tests.texts import PARAGRAPHS, paragraphs_of, read, squeeze, write

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


@pytest.mark.parametrize("content", ['{"text": "cut\n{"text": "cut\n', '{"t": "x"}\n'])
def test_json_without_one_good_line_is_refused(tmp_path: Path, content: str):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=r"a\.json: no line is a JSON object with a 'text' \(line 1: "):
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
    with pytest.raises(UserError, match=r"data\.format: 'markdown' is unknown: type auto, prose, sentences, jsonl"):
        read(path, format="markdown")


def test_document_over_a_megabyte_comes_in_parts(novels: Path):
    path = novels / "Lytton_Novel_1853.txt"
    parts = read(path, split_sentences=False)
    assert [part.key for part in parts] == ["Lytton_Novel_1853.txt#0"] * 3
    assert all(sum(map(len, part.sentences)) < 1.1 * documents.MAX_PART for part in parts)
    assert squeeze("".join("".join(part.sentences) for part in parts)) == squeeze(path.read_text("utf-8-sig"))


# Bad input


@pytest.mark.parametrize(
    "text",
    [
        b"Caf\xc3\xa9s of the city, one by one, are closed on Sundays. " * 99 + b"Caf\xe9s too.",
        b"Shops of the city, one by one, are closed on Sundays. " * 99 + b"Caf\xe9s too.",
        b"Caf\xc3\xa9s of the city, one by one, and caf\xe9s are closed on Sundays.",
        b"Caf\xe9s of the city, one by one, are closed on Sundays.",
        b"Shops of the city are closed on Sundays, and so are caf\xc3",
    ],
    ids=["one of many accents", "one in a thousand letters", "as many valid as not", "one in all", "cut at the end"],
)
def test_a_little_invalid_utf8_is_replaced_and_counted(text: bytes, tmp_path: Path):
    report = ReadReport()
    [document] = read(write(tmp_path / "a.txt", text), report=report)
    assert report.invalid_utf8 == 1
    assert "af\ufffd" in document.sentences[-1]
    assert report.warnings() == [f"1 invalid UTF-8 sequence replaced by U+FFFD, the first in {tmp_path / 'a.txt'}"]


def test_a_corpus_that_is_mostly_in_another_encoding_is_refused(tmp_path: Path):
    german = "Das Café in der Straße war gestern geschlossen, und der Bäcker auch. " * 20
    for number in range(3):
        write(tmp_path / f"{number}.txt", german.encode("cp1252"))
    write(tmp_path / "good.txt", german.encode())
    with pytest.raises(UserError, match=r"^most of the text .* would be left out .*0\.txt: not UTF-8 text \(convert"):
        read(tmp_path)


def test_nul_characters_are_removed_and_counted(tmp_path: Path):
    report = ReadReport()
    [document] = read(write(tmp_path / "a.txt", "A text that goes on\0\0 for some time, and ends.\0"), report=report)
    assert document.sentences == ["A text that goes on for some time, and ends."]
    assert report.nul_characters == 3


@pytest.mark.parametrize(
    "content",
    [
        Path(sys.executable).read_bytes()[:1_000_000],
        np.arange(200_000, dtype=np.int32).tobytes(),
        "Привет, мир. Это текст.".encode("cp1251") * 9,
        "This is text in another encoding.".encode("utf-16") * 9,
        "这是一段中文文本。".encode("gbk") * 9,
        "Das Café in der Straße war gestern geschlossen.".encode("cp1252") * 9,
        "The town’s cafés, one by one, are closed on Sundays. ".encode("cp1252") * 9,
    ],
    ids=["program", "numbers", "cp1251", "utf-16", "gbk", "cp1252", "curly quotes"],
)
def test_file_that_is_not_utf8_is_left_out_and_named(tmp_path: Path, content: bytes):
    write(tmp_path / "bad.txt", content)
    is_text = b"\0\0" not in content
    reason = "not UTF-8 text \\(convert it" if is_text else "not text"
    with pytest.raises(UserError, match=rf"no text in input '.*' \([^:]*bad\.txt: {reason}") as error:
        read(tmp_path)
    assert str(error.value).count("bad.txt") == 1
    write(tmp_path / "good.txt", PARAGRAPHS[0] * 9)
    report = ReadReport()
    assert [document.key for document in read(tmp_path, report=report)] == ["good.txt#0"]
    assert report.not_text == 1
    assert "bad.txt" in report.problems[0]


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf", b"\0\n"])
def test_empty_corpus_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(UserError, match=r"no text in input .*give UTF-8 text files"):
        read(write(tmp_path / "a.txt", content))


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
        ("gs://bucket/wiki/*", r"data\.input=gs://bucket/wiki/\*: URLs are not supported: "),
        (" , ", "data.input is empty: name files"),
        ([], "data.input is empty: name files"),
        ("tfds:", "'tfds:' does not name a data set"),
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
    write(tmp_path / "c.bin", bytes(range(128, 160)))
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
