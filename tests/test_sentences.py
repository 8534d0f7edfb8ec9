import json
from pathlib import Path

from bert_jax.data import sentences as sentences_module
from bert_jax.data.documents import split_paragraph
from tests.texts import read, squeeze


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
