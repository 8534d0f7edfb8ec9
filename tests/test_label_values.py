"""Labels and texts of the wrong type or value are refused in one line, or counted where they may be meant."""

from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from tests.finetune_data import tokenizer, write_jsonl
from tests.test_own_labels import own


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (
            ["good", True],
            r"line 2: the label in column 'label' is true, a truth value, but .* line 1 has \"good\", a text",
        ),
        ([True, 0, 1], r"line 1: the label .* is true, a truth value, but .* line 2 has 0, a number: write labels of"),
        (
            ["good", "bad", 1],
            r"line 3: .* is 1, a number, but .*line 1 has \"good\", a text: .* --config.own.labels=A,B",
        ),
    ],
)
def test_a_label_of_another_type_is_refused(tmp_path: Path, labels: list[Any], match: str):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": label} for label in labels])
    with pytest.raises(UserError, match=match):
        own(tmp_path, kind="classification").read("train")
    names = ",".join(str(label) for label in labels)
    assert own(tmp_path, kind="classification", labels=names).read("train")[-1].label == len(labels) - 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "b", "1"], "label '1' is a number, the others are not"),
        (["a", "b", "true"], "label 'true' is a truth value, the others are not"),
        (["1", "1.0", "2"], "labels '1' and '1.0' are one number"),
        (["1", "2", "3+"], ""),
        (["true", "false", "half-true"], ""),
        (["a", "b"], ""),
    ],
)
def test_a_stray_label_of_a_table_is_named(tmp_path: Path, labels: list[str], expected: str):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"x,{label}\n" for label in labels))
    for kind in ("classification", "multilabel"):
        task = own(tmp_path, kind=kind)
        notes = task.notes(task.load("train", tokenizer=tokenizer()))[1:]
        assert (expected in notes[0] and len(notes) == 1) if expected else not notes


def test_texts_that_are_empty_or_numbers_are_counted(tmp_path: Path):
    records = [
        {"text": text, "b": pair, "label": i} for i, (text, pair) in enumerate([("x", " "), (5, "y"), ("", "7.5")])
    ]
    write_jsonl(tmp_path / "train.jsonl", records)
    task = own(tmp_path, kind="regression", text_pair="b")
    notes = task.notes(task.load("train", tokenizer=tokenizer()))
    starts = [
        "numbers from 0 to 2 in train, mean 1",
        "1 of 3 texts of train are empty, the first: TRAIN line 3; is 'text' the column of the texts",
        "1 of 3 texts of train are numbers, the first: TRAIN line 2; is 'text' the column of the texts",
        "1 of 3 texts of train are empty, the first: TRAIN line 1; is 'b' the column of the texts",
        "1 of 3 texts of train are numbers, the first: TRAIN line 3; is 'b' the column of the texts (config.own.t",
    ]
    assert len(notes) == len(starts)
    for note, start in zip(notes, starts, strict=True):
        assert note.replace(str(tmp_path / "train.jsonl"), "TRAIN").startswith(start)


def test_numbers_to_learn_are_numbers_that_float32_can_square(tmp_path: Path):
    wrong = [
        (True, "true is not a number: fix column label"),
        (10**400, "a number of more than 60 digits is beyond 1e\\+18"),
        (-(10**400), "a number of more than 60 digits is beyond"),
        (1e300, r"1e\+300 is beyond 1e\+18, the largest number that is computed with: scale column label"),
        ("x" * 400, "'x{59}... is not a number"),
    ]
    for label, match in wrong:
        write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": 1.0}, {"text": "x", "label": label}])
        with pytest.raises(UserError, match=f"train.jsonl line 2: {match}") as error:
            own(tmp_path, kind="regression").read("train")
        assert len(str(error.value)) < 400
    write_jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": 2.5}] * 3)
    task = own(tmp_path, kind="regression")
    (note,) = task.notes(task.load("train", tokenizer=tokenizer()))
    assert note.startswith("column 'label' is 2.5 in all 3 examples of train: there is nothing to learn")
