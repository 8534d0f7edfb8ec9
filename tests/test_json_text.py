"""The texts of JSON, under any key and in any layout of the file."""

import json
import tracemalloc
from pathlib import Path

import pytest

from bert_jax.data import json_text
from bert_jax.data.documents import TextLayout, read_documents
from bert_jax.data.formats import detect_format
from bert_jax.data.json_text import find_text, suggest_key
from bert_jax.errors import UserError
from tests.texts import PARAGRAPHS, paragraphs_of, read, write

RECORDS = [{"id": number, "text": text, "meta": {"body": text}} for number, text in enumerate(PARAGRAPHS)]
LAYOUTS = {
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "array": json.dumps(RECORDS),
    "indented array": json.dumps(RECORDS, indent=2),
    "object": json.dumps({"version": 1, "data": RECORDS}),
    "indented object": json.dumps({"version": 1, "data": RECORDS, "end": [1, 2]}, indent=1),
    "indented objects": "\n".join(json.dumps(record, indent=4) for record in RECORDS),
    "array a line": "\n".join(json.dumps([record]) for record in RECORDS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("key", ["text", "meta.body"])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_each_record_is_a_document_in_every_layout(
    tmp_path: Path, layout: str, key: str, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_text, "BLOCK", block)
    path = write(tmp_path / "a.json", LAYOUTS[layout])
    assert paragraphs_of(path, layout=TextLayout(text_key=key)) == [[text] for text in PARAGRAPHS]


def test_the_array_of_an_object_may_be_named_in_the_key(tmp_path: Path):
    path = write(tmp_path / "a.json", LAYOUTS["indented object"])
    assert len(read(path, layout=TextLayout(text_key="data.text"))) == len(PARAGRAPHS)


@pytest.mark.parametrize("content", [PARAGRAPHS, {"name": "x", "text": PARAGRAPHS, "tags": ["a"]}])
def test_an_array_of_strings_is_an_array_of_documents(tmp_path: Path, content):
    path = write(tmp_path / "a.json", json.dumps(content, indent=1))
    assert paragraphs_of(path) == [[text] for text in PARAGRAPHS]


def test_an_array_of_strings_in_each_of_several_objects_is_a_document(tmp_path: Path):
    path = write(tmp_path / "a.json", (json.dumps({"text": PARAGRAPHS, "tags": ["a"]}, indent=1) + "\n") * 2)
    assert paragraphs_of(path) == [PARAGRAPHS] * 2


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        ({"a": {"b": "x"}}, "a.b", "x"),
        ({"a.b": "y", "a": {"b": "x"}}, "a.b", "y"),
        ({"a": ["x", "y"]}, "a", "x\n\ny"),
        ({"a": [{"b": "x"}, {"c": 1}, {"b": "y"}]}, "a.b", "x\n\ny"),
        ({"a": None}, "a", None),
        ({"a": 3}, "a", None),
        ({"a": "x"}, "a.b", None),
        ([], "a", None),
    ],
)
def test_a_dotted_key_leads_to_the_text(value, key: str, text: str | None):
    assert find_text(value, key) == text


def test_the_suggested_key_is_that_of_the_longest_text():
    assert suggest_key({"id": "7", "doc": {"title": "A", "body": ["long " * 9]}}) == "doc.body"
    assert suggest_key({"id": 7}) == ""


@pytest.mark.parametrize("layout", ["lines", "array", "indented object"])
def test_a_missing_key_is_answered_by_one_that_is_there(tmp_path: Path, layout: str):
    path = write(tmp_path / "a.json", LAYOUTS[layout].replace('"text"', '"content"').replace('"body"', '"b"'))
    with pytest.raises(UserError, match=r"no text in input .*type --config\.data\.text_key=(data\.)?content$"):
        read(path)


@pytest.mark.parametrize(
    "content", ['[{"text": "cut', '[{"text": "a"} {', '{\n"a" 3}', "[" * 100_000, '[\n{"text": "a"}, nothing]']
)
def test_json_that_is_cut_or_damaged_is_one_clear_line(tmp_path: Path, content: str):
    with pytest.raises(UserError, match=r"a\.json"):
        read(write(tmp_path / "a.json", content))


def test_memory_does_not_grow_with_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_text, "BLOCK", 1 << 14)
    peaks = []
    for copies in (100, 400):
        path = write(tmp_path / "a.json", json.dumps(RECORDS * copies))
        tracemalloc.start()
        assert sum(1 for _ in read_documents(str(path), split_sentences=False)) == copies * len(RECORDS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ('["Hello", she said.', "prose"),
        ('["Hello"] was what she said.', "prose"),
        ('["One text.", "Another."]', "json"),
        ('[{"text": "One."},\n {"text": "A text that is cut', "json"),
        ("[\n", "json"),
    ],
)
def test_prose_that_begins_as_an_array_is_prose(text: str, format: str):
    assert detect_format(text.encode(), name="a.txt") == format
    assert detect_format(text.encode(), name="a.json") == "json"


def test_json_that_is_damaged_or_prose_names_the_format_to_set(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.format=prose"):
        paragraphs_of(write(tmp_path / "a.json", '["Hello", she said.'))
