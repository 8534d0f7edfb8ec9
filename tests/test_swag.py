"""SWAG's rows become four instances each; one is chosen."""

from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions
from bert_jax.data.lines import MAX_WHOLE_LINE
from bert_jax.errors import UserError
from bert_jax.tasks.scoring import score_predictions
from bert_jax.tasks.swag import SwagTask
from tests.finetune_data import tokenizer

HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"


def swag(folder: Path, **options: object) -> SwagTask:
    return SwagTask(data=DataOptions(directory=str(folder), max_seq_length=48, **options))  # type: ignore[arg-type]


def test_the_shared_rows_are_read_whole(shared_data: Path):
    examples = swag(shared_data / "swag", dev_file="val_first500.csv").read("dev")
    assert len(examples) == 500
    assert examples[1].endings[2].startswith("He exits the building and rides the motorcycle")
    assert {example.label for example in examples} == {0, 1, 2, 3}


def test_an_example_is_four_instances_of_beginning_and_ending(tmp_path: Path):
    (tmp_path / "val.csv").write_text(
        HEADER + '0,,,s,the film was good,it,,was bad,"was, very good",was sad,was nice,1\n'
    )
    task, words = swag(tmp_path), tokenizer()
    split = task.load("dev", tokenizer=words)
    pieces = [words.convert_ids_to_pieces(ids.tolist()) for ids in split.features.ids]
    assert split.features.group == 4
    assert split.features.num_examples == 1
    assert pieces[0] == ["[CLS]", "the", "film", "was", "good", "[SEP]", "it", "was", "bad", "[SEP]"]
    assert pieces[1][6:] == ["it", "was", ",", "very", "good", "[SEP]"]
    assert split.features.first_lengths.tolist() == [6] * 4
    assert task.score(split, [np.array([0.0, 2, 1, 1], np.float32)]) == {"accuracy": 1.0}
    wrong = [np.array([5.0, 2, 1, 1], np.float32)]
    assert task.mistakes(split, wrong, count=3)[0]["prediction"] == "it was bad"


def test_predictions_are_written_and_scored(tmp_path: Path, shared_data: Path):
    task = swag(shared_data / "swag", dev_file="val_first500.csv")
    labels = [example.label for example in task.read("dev")]
    path = tmp_path / "pred.csv"
    path.write_text("pred\n" + "".join(f"{label if i >= 50 else (label or 0) ^ 1}\n" for i, label in enumerate(labels)))
    data = str(shared_data / "swag" / "val_first500.csv")
    assert score_predictions(task="swag", predictions=str(path), data=data) == {"accuracy": 0.9}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("0,,,s,a,b,,1,2,3,4,5\n", "line 2: unknown label '5': write 0, 1, 2 or 3"),
        ("0,,,s,a,b,,1,2,3,4\n", "line 2: 11 columns, expected 12"),
        ("0,,,s,a," + "b" * (MAX_WHOLE_LINE + 1) + ",,1,2,3,4,0\n", "val.csv line 2: field larger than field limit"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, row: str, match: str):
    (tmp_path / "val.csv").write_text(HEADER + row)
    with pytest.raises(UserError, match=match):
        swag(tmp_path).read("dev")
