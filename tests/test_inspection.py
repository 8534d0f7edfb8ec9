"""Before it works, a build says what it found, and it refuses a text of which most would be lost."""

import gzip
import json
import random
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from text_corpus import make_documents, write_corpus, write_vocabulary

from bert_jax.config import DataConfig
from bert_jax.data import inspection, losses, separators
from bert_jax.data import lines as lines_of_text
from bert_jax.data.builder import build_dataset, describe_inputs
from bert_jax.data.documents import TextLayout
from bert_jax.errors import UserError
from bert_jax.usage import as_flags as as_flags_of
from tests.texts import paragraphs_of, write

FLAGS = {"objective", "documents", "format", "input", "vocab_size"}
PARTS = [" ".join(sentences) for sentences in make_documents(30)]


def as_flags(message: str) -> str:
    return as_flags_of(message, names=FLAGS)


def describe(path: Path, **settings) -> list[str]:
    lines: list[str] = []
    config = DataConfig(input=str(path), num_workers=1, **settings)
    describe_inputs(config, out=str(path / "out"), max_seq_lengths=(64,), report=lines.append)
    return lines


def test_a_long_look_at_the_input_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_corpus(tmp_path / "in", make_documents(30))
    monkeypatch.setattr("bert_jax.progress.INTERVAL_SECONDS", 0.02)
    lines: list[str] = []
    read_source = inspection.read_source

    def slow(*arguments, **options):
        deadline = time.monotonic() + 10
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        yield from read_source(*arguments, **options)

    monkeypatch.setattr(inspection, "read_source", slow)
    config = DataConfig(input=str(tmp_path / "in"), num_workers=1)
    describe_inputs(config, out="", max_seq_lengths=(64,), report=lines.append)
    assert lines[0].startswith("looking at the input: 0% of ")
    assert any(line.startswith("found: ") for line in lines)


def build(path: Path, out: Path, *, vocab_size: int = 0, **settings):
    lines: list[str] = []
    config = DataConfig(input=str(path), num_workers=1, **settings)
    info = build_dataset(config, out=out, max_seq_lengths=(64,), vocab_size=vocab_size, report=lines.append)
    return info, lines


# Where documents end


@pytest.mark.parametrize(
    ("documents", "text", "expected"),
    [
        ("lines", "One.\n\nTwo. More.\n", [["One."], ["Two. More."]]),
        ("blank_lines", "One.\nMore.\n\n\nTwo.\n", [["One.", "More."], ["Two."]]),
        (
            "<|endoftext|>",
            "One.\n\nMore.<|endoftext|>Two.\n<|endoftext|>\nThree.",
            [["One.", "More."], ["Two."], ["Three."]],
        ),
        ("***", "***\nOne.\n***\n\n***\nTwo.\n***\n", [["One."], ["Two."]]),
    ],
)
@pytest.mark.parametrize("format", ["prose", "sentences", "auto"])
def test_documents_end_where_the_user_says(tmp_path: Path, documents: str, text: str, expected: list, format: str):
    layout = TextLayout(format=format, documents=documents)
    assert paragraphs_of(write(tmp_path / "a.txt", text), layout=layout) == expected


def test_a_document_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(separators, "_MAX_LINES", 10)
    lines = [f"Line {number} is a sentence." for number in range(100)]
    for documents in ("blank_lines", "<|endoftext|>"):
        found = paragraphs_of(write(tmp_path / "a.txt", "\n".join(lines)), layout=TextLayout(documents=documents))
        assert [len(document) for document in found] == [100]


@pytest.mark.parametrize("documents", ["line", "blank-lines", " ", "\n\n", "\\n\\n", "### "])
def test_a_separator_that_is_none_is_refused(tmp_path: Path, documents: str):
    with pytest.raises(UserError, match=r"data\.documents=.*type lines \(each line is a document\), blank_lines"):
        describe(write(tmp_path / "a.txt", "\n".join(PARTS)), documents=documents)


def test_one_document_names_the_flags_of_the_command(tmp_path: Path):
    path = write(tmp_path / "a.txt", "\n".join(PARTS))
    with pytest.raises(
        UserError, match=r"only one: .*config\.data\.objective=mlm; .*--config\.data\.documents=lines"
    ) as error:
        describe(path)
    message = as_flags(str(error.value))
    assert "set --objective=mlm; " in message
    assert "--documents=lines (each line is one), blank_lines" in message
    assert "config." not in message
    assert describe(path, documents="lines")[1].startswith("found: 30 documents")


def test_messages_keep_fields_that_are_no_flags():
    assert (
        as_flags("set --config.train.num_steps=3, data.format=prose")
        == "set --config.train.num_steps=3, --format=prose"
    )
    assert as_flags("type --config.data.directory=/x") == "type --config.data.directory=/x"
    assert as_flags("data.input is empty; data.txt is not") == "--input is empty; data.txt is not"
    assert as_flags("set config.model.vocab_size=9 (prepare --vocab_size=9)") == "set --vocab_size=9"


def test_documents_of_one_sentence_are_refused_for_next_sentence_prediction(tmp_path: Path):
    path = write(tmp_path / "a.txt", "\n".join(text.partition(".")[0] + "." for text in PARTS))
    for objective in ("mlm+nsp", "mlm+sop"):
        with pytest.raises(
            UserError, match=r"100\.00% of the documents have one sentence.* --config\.data\.objective=mlm"
        ):
            describe(path, documents="lines", objective=objective)
    assert describe(path, documents="lines", objective="mlm")


@pytest.mark.parametrize("name", ["a.txt", "z.txt"])
def test_rows_of_one_sentence_beside_long_documents_are_no_reason_to_refuse(tmp_path: Path, name: str):
    rows = [f"Row {number} is short." for number in range(1500)]
    write(tmp_path / name, "\n".join(rows))
    write(tmp_path / "m.txt", "\n".join(" ".join(PARTS[:10]) for _ in range(40)))
    assert any(line.startswith("found: 1,540 documents") for line in describe(tmp_path, documents="lines"))


def test_documents_of_one_sentence_are_warned_of_once_in_a_build_and_in_its_dry_run(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl", json_texts([*PARTS, "One sentence alone.", "Another one alone."] * 2, lines=True)
    )
    _, lines = build(path, tmp_path / "out", vocab_size=300)
    for said in (describe(path), lines):
        [warning] = [as_flags(line) for line in said if "of the documents have one sentence, so" in line]
        assert re.match(r"warning: \d\.\d\d% of the documents .* set --objective=mlm; .* with --documents$", warning)


def test_documents_are_shown_once_per_data_set(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", json_texts([*PARTS], lines=True))
    for length, shown in ((64, 3), (64, 0), (128, 0)):  # built, complete, another length added
        lines: list[str] = []
        config = DataConfig(input=str(path), num_workers=1)
        build_dataset(config, out=tmp_path / "out", max_seq_lengths=(length,), vocab_size=300, report=lines.append)
        assert sum(line.startswith("document ") for line in lines) == shown


def test_copies_of_documents_are_warned_of_and_refused_where_they_are_nearly_all(tmp_path: Path):
    write_vocabulary(tmp_path / "vocab")
    settings: dict[str, Any] = {"vocab": str(tmp_path / "vocab"), "documents": "lines", "objective": "mlm"}
    for copies, warned in ((1, False), (2, True)):
        path = write(tmp_path / f"in{copies}" / "a.txt", "\n".join(PARTS * copies))
        _, lines = build(path, tmp_path / f"out{copies}", **settings)
        assert any("% of the text are copies of other documents" in line for line in lines) == warned
        assert any("0.00% in copies of documents" in line for line in lines) != warned
    path = write(tmp_path / "in" / "a.txt", "\n".join(PARTS * 20))
    with pytest.raises(
        UserError, match=r"9\d\.\d\d% of the text are copies .*: remove them; .*--config\.train\.num_epochs"
    ):
        build(path, tmp_path / "out", **settings)


def test_one_sentence_documents_are_weighed_by_their_text():
    counts = losses.Losses(characters=100, documents=100, one_sentence=99, one_sentence_characters=99)
    [warning] = losses.check(counts, objective="mlm+nsp", is_learned=True)
    assert warning.startswith("warning: 99.00% of the documents have one sentence")
    counts.one_sentence_characters = 100
    with pytest.raises(UserError, match="have one sentence"):
        losses.check(counts, objective="mlm+nsp", is_learned=True)


# What was found


def test_the_report_names_formats_documents_and_what_is_left_out(tmp_path: Path):
    write(tmp_path / "a.csv", "id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(PARTS)))
    write(tmp_path / "b" / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PARTS))
    write(tmp_path / "b" / "page.html", "<html><body>Text</body></html>")
    write(tmp_path / "b" / "dataset_info.json", '{"features": {"text": {"dtype": "string"}}}')
    lines = describe(tmp_path)
    mean = sum(map(len, PARTS)) / len(PARTS)
    assert lines[1] == f"found: 60 documents of {mean:,.0f} characters on average in 4 files (1 csv, 1 jsonl)"
    assert [line.partition(",")[0] for line in lines[2:5]] == [
        "document 1 (a.csv#0)",
        "document 2 (b/a.jsonl#0)",
        "document 3 (a.csv#1)",
    ]
    assert " | ".join(make_documents(30)[0])[:100] in lines[2]
    assert lines[5] == "left out: 2 files"
    assert "dataset_info.json" in lines[6]
    assert "page.html: HTML" in lines[7]
    assert not (tmp_path / "out").exists()


def test_the_embedded_corpus_is_named_and_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bert_jax.data.documents.read_embedded_corpus", None)
    path = write(tmp_path / "a.txt", "\n".join(PARTS))
    lines: list[str] = []
    for inputs in ("embedded", f"embedded,{path}"):
        config = DataConfig(input=inputs, num_workers=1)
        describe_inputs(config, out="", max_seq_lengths=(64,), report=lines.append)
    assert sum(line == "found: the documentation inside the installed Python" for line in lines) == 2
    assert sum(line.startswith("found: 1 document ") for line in lines) == 1


def test_a_large_text_is_estimated_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection, "SAMPLE_CHARS", 100_000)
    monkeypatch.setattr(inspection, "_COUNTED_CHARS", 50_000)
    monkeypatch.setattr(lines_of_text, "BLOCK", 1 << 15)
    for name in "abcdef":
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PARTS * 20))
    [found] = [line for line in describe(tmp_path) if line.startswith("found: ")]
    number = int(found.split()[2].replace(",", ""))
    assert found.startswith("found: about ")
    assert 6 * 500 < number < 6 * 700


def test_tables_after_many_long_texts_are_counted_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection, "SAMPLE_CHARS", 100_000)
    monkeypatch.setattr(inspection, "_COUNTED_CHARS", 50_000)
    monkeypatch.setattr(inspection, "_SEEN_CHARS", 1000)
    monkeypatch.setattr(lines_of_text, "BLOCK", 1 << 12)
    for number in range(10):
        write(tmp_path / "a" / f"{number}.txt", "\n".join(PARTS * 10))
    write(tmp_path / "b.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PARTS * 100))
    lines = describe(tmp_path)
    [found] = [line for line in lines if line.startswith("found: ")]
    assert 2500 < int(found.split()[2].replace(",", "")) < 3500  # 10 texts and 3,000 rows
    assert [line.partition("#")[0] for line in lines[2:4]] == ["document 1 (a/0.txt", "document 2 (b.jsonl"]
    size = sum(map(len, PARTS)) * 200 / 1e6
    [estimate] = [line for line in lines if line.startswith("estimate: ")]
    assert float(estimate.split()[1]) == pytest.approx(size, rel=0.2)  # MB, without the keys of the JSON objects


def test_texts_inside_archives_are_counted_by_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name in ("a.txt", "b.txt"):
            archive.writestr(name, "\n".join(PARTS))
        archive.writestr("c.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PARTS))
        archive.writestr("d.jsonl", '{"other": 1}\n')  # without text
        archive.writestr("e.html", "<html><body>Text</body></html>")
        archive.writestr("empty.txt", "")
    write(tmp_path / "plain.txt.gz", gzip.compress("\n".join(PARTS).encode()))  # compressed, no archive
    lines = describe(tmp_path)
    [found] = [line for line in lines if line.startswith("found: ")]
    assert found.startswith(f"found: {3 + len(PARTS)} documents")
    assert found.endswith("in 2 files (1 jsonl+prose, 1 prose); two.zip is an archive of 3 texts (1 jsonl, 2 prose)")
    assert "left out: 2 files" in lines
    monkeypatch.setattr(inspection, "_COUNTED_CHARS", 1)
    monkeypatch.setattr(inspection, "_SEEN_CHARS", 1)
    monkeypatch.setattr(lines_of_text, "BLOCK", 1 << 10)
    [found] = [line for line in describe(tmp_path) if line.startswith("found: ")]
    assert found.endswith("two.zip is an archive of at least 2 texts (2 prose)")


def test_what_is_left_out_is_said_once(tmp_path: Path):
    write(tmp_path / "logo.png", random.Random(0).randbytes(4000))
    with pytest.raises(UserError) as error:
        describe(tmp_path)
    assert str(error.value).count("logo.png") == 1
    assert "iconv" not in str(error.value)
    write(tmp_path / "a.txt", "\n\n".join(PARTS))
    _, lines = build(tmp_path, tmp_path / "out", vocab_size=300, documents="blank_lines")
    assert sum("left out" in line or "logo.png" in line for line in lines) == 2  # how many, and which
    assert not any(line.startswith("warning: ") and "file" in line for line in lines)


def json_texts(texts: list[str | None], *, lines: bool) -> str:
    records = [{"id": number, "text": text} for number, text in enumerate(texts)]
    return "\n".join(map(json.dumps, records)) if lines else json.dumps({"data": records, "version": 1})


WITHOUT = [None, "", *PARTS, *[None] * 8]
SOME_ROWS = {
    "a.jsonl": (
        json_texts(WITHOUT, lines=True),
        ["9 JSON lines skipped: invalid, or without a text", "1 row skipped: the text is empty or null"],
        "10 skipped: line 1: no 'text' that is a string (fields: id, text); line 2: the text is empty; line 33: no",
    ),
    "b.jsonl": (
        json_texts([*PARTS], lines=True) + '\n{"text": "cut',
        ["1 JSON line skipped: invalid, or without a text"],
        "1 skipped: line 31: not JSON (",
    ),
    "a.json": (
        json_texts(WITHOUT, lines=False),
        ["10 rows skipped: the text is empty or null"],
        "10 skipped: data item 1: no text; data item 2: no text; data item 33: no text; ...",
    ),
    "a.csv": (
        "id,text\n" + "".join(f'{number},"{text or ""}"\n' for number, text in enumerate(WITHOUT)),
        ["10 rows skipped: the text is empty or null"],
        "10 skipped: row 2 has no text; row 3 has no text; row 34 has no text; ...",
    ),
    "b.csv": (
        ("id,text\n" + "".join(f'{number},"Caf\xe9. {text}"\n' for number, text in enumerate(PARTS))).encode("latin-1"),
        ["30 invalid UTF-8 sequences replaced by U+FFFD, the first in FILE"],
        "",
    ),
    "c.csv": (
        "id,text\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(PARTS)) + "1,2,3\n",
        ["1 row of tables skipped: another number of columns than the header"],
        "1 skipped: row 32 has 3 cells instead of 2",
    ),
}


@pytest.mark.parametrize("name", SOME_ROWS)
def test_rows_that_are_left_out_are_said_once_before_the_work_begins(tmp_path: Path, name: str):
    content, counts, places = SOME_ROWS[name]
    path = write(tmp_path / name, content)
    expected = [f"warning: {line}".replace("FILE", str(path)) for line in counts]
    _, lines = build(path, tmp_path / "out", vocab_size=300, objective="mlm")
    for said in (describe(path, objective="mlm"), lines):
        warnings = [line for line in said if line.startswith("warning: ") and "%" not in line]
        assert warnings[: len(expected)] == expected
        assert len(warnings) == len(expected) + bool(places)
        assert not places or warnings[-1].startswith(f"warning: {path}: {places}")


def test_rows_left_out_of_a_sample_are_said_to_be_of_its_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection, "SAMPLE_CHARS", 10_000)
    monkeypatch.setattr(inspection, "_COUNTED_CHARS", 5_000)
    monkeypatch.setattr(lines_of_text, "BLOCK", 1 << 12)
    write(tmp_path / "a.jsonl", json_texts([None, *PARTS * 9, None], lines=True))
    lines = [line for line in describe(tmp_path) if line.startswith("warning: ")]
    number = re.fullmatch(r"warning: of the first (\d+) documents: 1 JSON line skipped: .*", lines[0])
    assert number
    assert 20 < int(number[1]) < 9 * len(PARTS)
    assert len(lines) == 2
    _, lines = build(tmp_path, tmp_path / "out", vocab_size=300, objective="mlm")
    assert any(line.startswith("warning: 2 JSON lines skipped: ") for line in lines)


def test_a_separator_that_occurs_nowhere_is_warned_of(tmp_path: Path):
    for number in range(4):
        write(tmp_path / f"{number}.txt", "\n###\n".join(PARTS))
    [line] = [line for line in describe(tmp_path, documents="[") if line.startswith("warning: ")]
    assert as_flags(line) == "warning: --documents='[' is in none of the texts, so each plain text is one document"
    assert not any(line.startswith("warning: ") for line in describe(tmp_path, documents="###"))
    assert not any(
        line.startswith("warning: ") for line in describe(tmp_path, documents="blank_lines", objective="mlm")
    )


def test_an_empty_folder_is_called_one(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is a folder without files"):
        describe(tmp_path / "empty")


def test_a_page_beside_a_large_text_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspection, "SAMPLE_CHARS", 1)
    monkeypatch.setattr(inspection, "_SEEN_CHARS", 1 << 10)
    monkeypatch.setattr(inspection, "_COUNTED_CHARS", 1 << 10)
    monkeypatch.setattr(lines_of_text, "BLOCK", 1 << 10)
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PARTS * 3))
    write(tmp_path / "page.html", "<html><body>" + "Text. " * 10_000)
    assert "left out: 1 file" in describe(tmp_path)
    write(tmp_path / "page2.html", "<html><body>" + "Text. " * 100_000)
    with pytest.raises(UserError, match=r"most of the text .* would be left out"):
        describe(tmp_path)


# What is lost


def rare_words(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("бвгджзклмн", k=8)) for _ in range(count)]


def test_a_text_of_which_most_becomes_unknown_is_refused_and_a_little_is_warned_of(tmp_path: Path):
    vocab = str(write_vocabulary(tmp_path / "vocabulary"))
    foreign = [[" ".join(rare_words(9)) + "." for _ in range(5)] for _ in range(10)]
    text = write_corpus(tmp_path / "most", foreign)
    with pytest.raises(
        UserError, match=r"\d\d\.\d\d% of the characters are lost to \[UNK\].* leave --config\.data\.vocab empty"
    ):
        build(text, tmp_path / "out", vocab=vocab)
    text = write_corpus(tmp_path / "some", make_documents(40) + foreign)
    _, lines = build(text, tmp_path / "out2", vocab=vocab)
    assert any(line.startswith("warning: ") and "are lost to [UNK]" in line for line in lines)


def test_words_over_the_limit_are_the_reason_given(tmp_path: Path):
    rng = random.Random(0)
    text = [["".join(rng.choices("acgt", k=600)) for _ in range(4)] for _ in range(9)]
    path = write_corpus(tmp_path / "dna", text)
    with pytest.raises(UserError, match=r"because 100% of its characters are in words of more than 200 characters"):
        build(path, tmp_path / "out", vocab_size=300)
    vocab = str(write_vocabulary(tmp_path / "vocabulary"))
    with pytest.raises(UserError, match=r"100\.00% of the characters .* words over 200 characters: put spaces"):
        build(path, tmp_path / "out", vocab=vocab)


def test_the_share_of_characters_is_exact():
    text = "known " + "x" * 201 + " été"
    assert losses.overlong_characters(text, limit=200) == 201
    assert losses.overlong_characters("x" * 150 + "," + "y" * 150, limit=200) == 0


def test_stripped_accents_are_warned_of_and_kept_where_they_are_vowels(tmp_path: Path):
    rng = random.Random(0)
    for name, words in {"thai": ["ต้น", "ไม้", "ที่", "บ้าน", "นี้"], "viet": ["tiếng", "việt", "yêu", "lắm", "đẹp"]}.items():
        text = [[" ".join(rng.choices(words, k=8)) + " ." for _ in range(8)] for _ in range(8)]
        _, lines = build(write_corpus(tmp_path / name, text), tmp_path / f"out_{name}", vocab_size=40)
        text = "\n".join(lines)
        assert ("accents are kept: stripping would delete" in text) == (name == "thai")
        assert ("warning: accents and marks are stripped" in text) == (name == "viet")


def test_a_part_of_one_long_document_is_held_out(tmp_path: Path):
    text = " ".join(" ".join(sentences) for sentences in make_documents(150))
    vocab = str(write_vocabulary(tmp_path / "vocabulary"))
    path = write(tmp_path / "text" / "a.txt", text)
    info, lines = build(path.parent, tmp_path / "out", vocab=vocab, objective="mlm", heldout_fraction=0.1)
    assert "the text is one document: a part of it is held out" in lines
    tokens = info.statistics["tokens"]
    assert 0.02 < tokens["validation"] / sum(tokens.values()) < 0.3
    again, _ = build(path.parent, tmp_path / "again", vocab=vocab, objective="mlm", heldout_fraction=0.1)
    assert again.data_fingerprint == info.data_fingerprint
    whole, _ = build(path.parent, tmp_path / "whole", vocab=vocab, objective="mlm", heldout_fraction=0.0)
    assert whole.statistics["tokens"]["train"] == sum(tokens.values())
