"""Own data of every kind is read by naming columns, and what is wrong with it is one line."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, OwnOptions
from bert_jax.errors import UserError
from bert_jax.kinds.base import Gold
from bert_jax.kinds.choice import Choice
from bert_jax.kinds.table import KINDS
from bert_jax.tasks.interface import Task
from bert_jax.tasks.registry import open_task
from tests.finetune_data import tokenizer, write_jsonl
from tests.rounding import assert_rounded_alike, cross_entropy_bound


def own(folder: Path, *, kind: str, **options: str) -> Task:
    data = DataOptions(directory=str(folder), max_seq_length=40)
    return open_task("own", data=data, own=OwnOptions(kind=kind, **options))


RECORDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "classification": ({"review": "it was good", "stars": 5}, {"text": "review", "label": "stars", "labels": "4,5"}),
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
    "multilabel": ({"review": "it was good", "about": ["film", "sound"]}, {"text": "review", "label": "about"}),
}
WIDTHS = {"classification": 2, "regression": 1, "choice": 3, "span": 2, "tags": 3, "multilabel": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_json_lines(tmp_path: Path, kind: str):
    record, options = RECORDS[kind]
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [record] * 3)
    task = own(tmp_path, kind=kind, **options)
    split = task.load("train", tokenizer=tokenizer())
    features = split.features
    assert task.kind is KINDS[kind]
    assert features.num_examples == 3
    assert features.group == (3 if kind == "choice" else 1)
    shape = (len(features.ids[0]), WIDTHS[kind]) if kind in ("span", "tags") else (WIDTHS[kind],)
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


def test_labels_are_a_list_and_in_a_table_names_with_commas(tmp_path: Path):
    """Label order is that of the config, else alphabetical; a text may have no label."""
    rows = [{"text": "x", "label": ["b", "c d", 5]}, {"text": "y", "label": []}, {"text": "z", "label": ["b", "b"]}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    task = own(tmp_path, kind="multilabel")
    assert task.labels == ("5", "b", "c d")
    (tmp_path / "table.tsv").write_text("text\tlabel\nx\tb, c d,5\ny\t\nz\tb\n")
    for changes in ({}, {"train_file": "table.tsv"}):
        task.data = dataclasses.replace(task.data, **changes)
        split = task.load("train", tokenizer=tokenizer())
        np.testing.assert_array_equal(split.features.targets, [[1, 1, 1], [0, 0, 0], [0, 1, 0]])
    task = own(tmp_path, kind="multilabel", labels="c d,b,5")
    targets = task.load("train", tokenizer=tokenizer()).features.targets
    assert targets is not None
    np.testing.assert_array_equal(targets[2], [0, 1, 0])


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
        (
            "classification",
            '{"words": "x"}',
            {},
            r"line 2: there are no columns 'text' and 'label'; the columns are words: ",
        ),
        ("regression", '{"text": "x", "label": "much"}', {}, r"line 2: 'much' is not a number: fix column label"),
        ("tags", '{"text": ["a", "b"], "label": ["O"]}', {}, r"line 2: 2 words but 1 tags: give one tag per word"),
        ("tags", '{"text": ["a", "b"], "label": ["B-X", "PER"]}', {}, r"line 2: tag 'PER' is not O, B-TYPE or I-TYPE"),
        ("tags", '{"text": ["a", "b"], "label": ["DT", "DT"]}', {}, r"the only tag of the train set is DT"),
        ("classification", '{"text": "x", "label": "a"}', {}, r"the only label in column 'label' of train is 'a'"),
        ("classification", '{"text": "x", "label": ["a"]}', {}, r"line 2: column 'label' holds a list: .*:multilabel"),
        ("classification", '{"text": "x", "label": " "}', {}, r"line 2: column 'label' is empty: give the record"),
        (
            "choice",
            '{"text": "x", "c": ["a", "b"], "label": 2}',
            {"choices": "c"},
            r"write the index of the correct choice, 0 to 1",
        ),
        ("choice", '{"text": "x", "c": "a b", "label": 0}', {"choices": "c"}, r"column 'c' is not a list"),
        ("choice", '{"text": "x", "c": [], "label": 0}', {"choices": "c"}, r"line 2: 0 choices in column 'c'"),
        ("choice", '{"text": "x", "c": ["a", null], "label": 0}', {"choices": "c"}, r"line 2: column 'c' holds null"),
        ("classification", '{"text": "x", "label": null}', {}, r"line 2: column 'label' holds null, expected a text"),
        ("classification", '{"text": null, "label": "a"}', {}, r"line 2: column 'text' holds null, expected a text"),
        ("classification", '{"text": true, "label": "a"}', {}, r"line 2: column 'text' holds true, expected a text"),
        ("tags", '{"text": "a b", "label": ["b_PER", "o"]}', {}, r"line 2: tag 'b_PER' looks like 'B-PER' in another"),
        ("tags", '{"text": "a b", "label": "B-O O"}', {}, r"line 2: tag 'B-O' is an entity of type O, which means no"),
        ("tags", '{"text": "a b", "label": [true, false]}', {}, r"line 2: column 'label' holds true, expected a text"),
        ("classification", '{"text": ["x"], "label": "a"}', {}, r"line 2: column 'text' holds \["),
        ("multilabel", '{"text": "x", "label": "a"}', {}, r"line 2: column 'label' is 'a': write a list of labels"),
        ("multilabel", '{"text": "x", "label": null}', {}, r"line 2: column 'label' is null: write a list of labels"),
        ("multilabel", '{"text": "x", "label": [["a"]]}', {}, r"line 2: column 'label' holds \["),
        (
            "multilabel",
            '{"text": "x", "label": ["a"]}',
            {"labels": "b,c"},
            r"line 2: unknown label 'a': the labels are",
        ),
        ("multilabel", '{"text": "x", "label": []}', {}, r"no record of the train set has a label in column 'label'"),
        ("regression", '{"text": "x", "label": NaN}', {}, r"line 2: nan is not a number: fix column label"),
        ("regression", '{"text": "x", "label": Infinity}', {}, r"line 2: inf is not a number: fix column label"),
        ("regression", '{"text": "x", "label": null}', {}, r"line 2: null is not a number"),
        ("tags", '{"text": 5, "label": ["O"]}', {}, r"line 2: column 'text' is 5: write a list of words"),
        ("tags", '{"text": ["a"], "label": null}', {}, r"line 2: column 'label' is null: write a list of words"),
        ("tags", '{"text": [null], "label": ["O"]}', {}, r"line 2: column 'text' holds null, expected a text"),
        ("span", '{"text": "x", "c": "a b", "ladle": "a"}', {"text_pair": "c"}, r"line 2: there is no column 'label'"),
        (
            "choice",
            '{"words": "x", "ends": ["a"]}',
            {"choices": "c"},
            r"columns 'text', 'c' and 'label'; .*text=NAME --config.own.choices=NAME --config.own.label=NAME$",
        ),
        (
            "span",
            '{"text": "x", "context": "a b"}',
            {"text_pair": "c"},
            r"line 2: there are no columns 'c' and 'label'",
        ),
        ("span", '{"text": "x", "c": null, "label": "a"}', {"text_pair": "c"}, r"line 2: column 'c' holds null"),
        (
            "span",
            '{"text": "x", "c": "a b", "label": "a", "answer_start": null}',
            {"text_pair": "c"},
            r"line 2: column 'answer_start' is null: write the index",
        ),
        *(
            (
                "span",
                f'{{"text": "x", "c": "a b", "label": {answer}, "answer_start": {start}}}',
                {"text_pair": "c"},
                match,
            )
            for answer, start, match in (
                (
                    '"b"',
                    10**30,
                    r"line 2: column 'answer_start' is 1000.*, outside the context of 3 characters: write the",
                ),
                ('"b"', -5, r"line 2: .* is -5, outside the context .*, or leave it out: then the first occurrence"),
                ('"b"', 3, r"line 2: .* is 3, outside the context"),
                ('"b"', 0.5, r"line 2: column 'answer_start' is 0.5: write the index"),
                ('"b"', '"2"', r"line 2: column 'answer_start' is '2': write the index"),
                ('"b"', "true", r"line 2: column 'answer_start' is true: write the index"),
                ('["a", "b"]', 2, r"line 2: 2 answers but 1 value in 'answer_start'"),
                ('{"text": ["b"], "answer_start": [7]}', 2, r"line 2: .* is 7, outside the context"),
                ('{"answer_start": 2}', 2, r"line 2: column 'label' holds an object .* without 'text': write {"),
                ('{"text": [["b"]]}', 2, r"line 2: column 'label' holds \["),
                ("true", 2, r"line 2: column 'label' holds true, expected a text"),
                ('"b", "id": [1]', 2, r"line 2: column 'id' is \[1\]: write a text or a number"),
            )
        ),
        (
            "span",
            '{"text": "x", "c": "a b", "label": ["a", "b"], "answer_start": [0]}',
            {"text_pair": "c"},
            r"line 2: 2 answers but 1 value in 'answer_start': give one per answer",
        ),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, kind: str, line: str, options: dict[str, str], match: str):
    (tmp_path / "train.jsonl").write_text("\n" + line + "\n")
    with pytest.raises(UserError, match=match) as error:
        own(tmp_path, kind=kind, **options).load("train", tokenizer=tokenizer())
    assert "\n" not in str(error.value)


@pytest.mark.numerics
def test_records_may_have_different_numbers_of_choices(tmp_path: Path):
    """The sequences of all splits have one shape; a choice that a record lacks is neither learned nor predicted."""
    two, three = ({"text": "x", "c": list(letters), "label": 0} for letters in ("ab", "abc"))
    write_jsonl(tmp_path / "train.jsonl", [two, three])
    write_jsonl(tmp_path / "dev.jsonl", [two, {"text": "x", "c": list("abcd"), "label": 3}])
    task = own(tmp_path, kind="choice", choices="c")
    train, dev = (task.load(split, tokenizer=tokenizer()) for split in ("train", "dev"))
    assert (train.features.group, dev.features.group) == (4, 4)
    assert train.features.instance_lengths.tolist() == [[5, 5, 0, 0], [5, 5, 5, 0]]
    outputs = [np.array([1.0, 0, 9, 9]), np.array([0, 0, 0, 1.0])]
    assert task.score(dev, outputs) == {"accuracy": 1.0}
    kind = Choice(group=4)
    lengths = dev.features.instance_lengths.ravel().tolist()
    assert kind.baseline(lambda _: 0.0, lengths=lengths, targets=(), labels=()).score == pytest.approx(
        (1 / 2 + 1 / 4) / 2
    )
    segment_ids = np.array([[1, 2, 5, 6, 7, 8, 0]], np.int32)  # the first example has two choices, the second four
    gold = Gold(np.array([[0, 3]]), np.ones((1, 2), np.float32), segment_ids)  # type: ignore[arg-type]
    losses = kind.scores(np.stack(outputs)[None], gold).losses  # type: ignore[arg-type]
    expected = [[np.log1p(np.exp(-1)), np.log1p(3 * np.exp(-1))]]
    assert_rounded_alike(losses, expected, bound=cross_entropy_bound(4, largest=1.0))
    (tmp_path / "train.csv").write_text("text,a,b,c,label\nx,one,two,,1\nx,one,two,three,2\n")
    task = own(tmp_path, kind="choice", choices="a,b,c")
    task.data = dataclasses.replace(task.data, train_file="train.csv")
    assert [len(example.endings) for example in task.read("train")] == [2, 3]


def test_unanswerable_rows_may_say_so_with_null_and_several_answers_are_a_list(tmp_path: Path):
    row = {"q": "was it", "c": "it was good and nice"}
    empty = [{"a": answer, "answer_start": None} for answer in (None, "", [])]
    several = {"a": ["good", "nice"], "answer_start": [7, 16]}
    write_jsonl(tmp_path / "dev.jsonl", [row | some for some in (*empty, {"z": 1}, several, {"a": ["good", "nice"]})])
    task = own(tmp_path, kind="span", text="q", text_pair="c", label="a")
    split = task.load("dev", tokenizer=tokenizer())
    starts = [[(a.text, a.start) for a in question.answers] for question in split.examples]
    assert starts == [[], [], [], [], [("good", 7), ("nice", 16)], [("good", 0), ("nice", 0)]]
    outputs = [np.zeros((len(ids), 2), np.float32) for ids in split.features.ids]
    for number, output in enumerate(outputs):
        if number < 4:
            output[0] = 9  # no answer
        else:
            last = int(split.features.first_lengths[number]) + 4  # "nice", the second answer
            output[last] = 9
    figures = task.score(split, outputs)
    assert (figures["exact"], figures["HasAns_exact"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "record",
    [
        {"a": "good", "answer_start": 12},
        {"a": "good", "answer_start": 12.0},  # as pandas writes a column with gaps
        {"a": ["good"], "answer_start": [12]},
        {"a": ["good"], "answer_start": 12},
        {"a": {"text": "good", "answer_start": 12}},
        {"a": {"text": ["good"], "answer_start": [12]}},
        {"a": [{"text": "good", "answer_start": 12}]},
    ],
)
def test_an_answer_that_is_not_where_the_record_says_is_counted(tmp_path: Path, record: dict[str, Any]):
    """In every form of the answer; one without a start is where it first occurs, and not counted."""
    row = {"q": "was it", "c": "it was good and good"}
    write_jsonl(tmp_path / "train.jsonl", [row | record, row | {"a": "good"}, row | {"a": {"text": ["good"]}}])
    task = own(tmp_path, kind="span", text="q", text_pair="c", label="a")
    split = task.load("train", tokenizer=tokenizer())
    assert [question.answers[0].start for question in split.examples] == [12, 0, 0]
    (note,) = task.notes(split)
    assert note.startswith("1 of 3 answers of train are not at their answer_start: the occurrence nearest to it is")
    (tmp_path / "train.csv").write_text("q,c,a,answer_start\nwas it,it was good,good,7.0\nwas it,it was good,,\n")
    task.data = dataclasses.replace(task.data, train_file="train.csv")
    split = task.load("train", tokenizer=tokenizer())
    assert [[answer.start for answer in question.answers] for question in split.examples] == [[7], []]
    assert not task.notes(split)


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_set_needs_no_labels_and_train_and_dev_do(tmp_path: Path, kind: str):
    record, options = RECORDS[kind]
    bare = {name: value for name, value in record.items() if name != options["label"]}
    write_jsonl(tmp_path / "train.jsonl", [record])
    for name in ("dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [bare])
    task = own(tmp_path, kind=kind, **options)
    split = task.load("test", tokenizer=tokenizer())
    assert split.features.targets is None
    width = WIDTHS[kind]
    output = np.zeros((len(split.features.ids[0]), width) if kind in ("span", "tags") else width, np.float32)
    if kind == "tags":
        output[:, 1] = 1
    files = task.write_predictions(split, [output], directory=tmp_path / "out")
    assert files
    assert all(file.stat().st_size for file in files)
    if kind == "tags":
        assert files[0].read_text() == "the B-PER\nbob B-PER\n"
    with pytest.raises(UserError, match=r"dev.jsonl line 1: (there is no column|unknown label null)"):
        task.load("dev", tokenizer=tokenizer())


def test_an_unknown_tag_is_named_as_the_file_has_it(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "bob", "label": "I-PER"}])
    write_jsonl(tmp_path / "dev.jsonl", [{"text": "in rome", "label": "O I-LOC"}])
    with pytest.raises(UserError, match=r"dev.jsonl line 1: unknown label 'I-LOC' \(word 2, 'rome'\)"):
        own(tmp_path, kind="tags").load("dev", tokenizer=tokenizer())


def test_a_questions_id_stands_once_where_it_is_scored(tmp_path: Path):
    """Answers are written and scored by id: of two questions of one id one would be lost."""
    row = {"text": "x", "c": "a", "label": "a", "id": 7}
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [row, row])
    task = own(tmp_path, kind="span", text_pair="c")
    assert len(task.read("train")) == 2
    with pytest.raises(UserError, match=r"dev.jsonl line 2: id '7' also appears in an earlier record"):
        task.read("dev")
    task.data = dataclasses.replace(task.data, dev_fraction=0.5)
    with pytest.raises(UserError, match=r"train.jsonl line 2: id '7' also appears in an earlier record"):
        task.load("dev", tokenizer=tokenizer())
