"""Own data of every kind is read by naming columns, and what is wrong with it is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.interface import KINDS, Task
from bert_jax.tasks.options import DataOptions, OwnOptions
from bert_jax.tasks.registry import open_task
from tests.finetune_data import tokenizer, write_jsonl


def own(folder: Path, *, kind: str, **options: str) -> Task:
    data = DataOptions(directory=str(folder), max_seq_length=40)
    return open_task("own", data=data, own=OwnOptions(kind=kind, **options))


RECORDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "classification": ({"review": "it was good", "stars": 5}, {"text": "review", "label": "stars"}),
    "regression": ({"a": "it was good", "b": "very", "score": 2.5}, {"text": "a", "text_pair": "b", "label": "score"}),
    "tags": ({"words": ["the", "bob"], "tags": ["O", "I-PER"]}, {"text": "words", "label": "tags"}),
    "span": (
        {"question": "was it", "context": "it was very good", "answer": "very good", "id": "x"},
        {"text": "question", "text_pair": "context", "label": "answer"},
    ),
    "choice": (
        {"begin": "it was", "ends": ["good", "bad", "sad"], "right": 2},
        {"text": "begin", "choices": "ends", "label": "right"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_json_lines(tmp_path: Path, kind: str):
    record, options = RECORDS[kind]
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [record] * 3)
    task = own(tmp_path, kind=kind, **options)
    split = task.load("train", tokenizer=tokenizer())
    features = split.features
    assert task.kind == kind
    assert features.num_examples == 3
    assert features.group == (3 if kind == "choice" else 1)
    width = {"classification": 1, "regression": 1, "choice": 3, "span": 2, "tags": 3}[kind]
    shape = (width,) if kind in ("classification", "regression", "choice") else (len(features.ids[0]), width)
    figures = task.score(split, [np.zeros(shape, np.float32)] * 3)
    assert task.selection in figures
    files = task.write_predictions(split, [np.zeros(shape, np.float32)] * 3, directory=tmp_path / "out")
    assert all(file.stat().st_size for file in files)


def test_tsv_with_named_columns_says_the_same_as_json_lines(tmp_path: Path):
    (tmp_path / "train.tsv").write_text('id\treview\tstars\n1\tit was "good\tgood\n2\tit was bad\tbad\n')
    task = own(tmp_path, kind="classification", text="review", label="stars")
    assert task.labels == ("bad", "good")
    assert [example.text for example in task.read("train")] == ['it was "good', "it was bad"]
    (tmp_path / "train.tsv").write_text("w\tt\nthe bob\tO B-PER\n")
    assert own(tmp_path, kind="tags", text="w", label="t").labels == ("O", "B-PER", "I-PER")


def test_given_labels_keep_their_order_and_answers_may_be_missing(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": "low"}])
    assert own(tmp_path, kind="classification", labels="low, mid,high").labels == ("low", "mid", "high")
    write_jsonl(tmp_path / "train.jsonl", [{"q": "was it", "c": "it was good", "a": ""}])
    task = own(tmp_path, kind="span", text="q", text_pair="c", label="a")
    assert task.load("train", tokenizer=tokenizer()).features.targets == [(0, 0)]


@pytest.mark.parametrize(
    ("kind", "line", "options", "match"),
    [
        ("classification", '{"text": "x"', {}, r"train.jsonl line 2: not JSON"),
        ("classification", "[1]", {}, r"line 2: not a JSON object"),
        ("classification", '{"words": "x"}', {}, r"line 2: there is no column 'text' \(config.own.text\)"),
        ("regression", '{"text": "x", "label": "much"}', {}, r"line 2: 'much' is not a number: mend column label"),
        ("tags", '{"text": ["a", "b"], "label": ["O"]}', {}, r"line 2: 2 words and 1 tags: give one tag a word"),
        ("tags", '{"text": ["a"], "label": ["PER"]}', {}, r"line 2: tag 'PER' is neither"),
        (
            "choice",
            '{"text": "x", "c": ["a", "b"], "label": 2}',
            {"choices": "c"},
            r"write the right choice's number, 0 to 1",
        ),
        ("choice", '{"text": "x", "c": "a b", "label": 0}', {"choices": "c"}, r"column 'c' is no list"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, kind: str, line: str, options: dict[str, str], match: str):
    (tmp_path / "train.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(UserError, match=match) as error:
        own(tmp_path, kind=kind, **options).load("train", tokenizer=tokenizer())
    assert "\n" not in str(error.value)
