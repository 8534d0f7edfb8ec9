"""Predictions files are scored as the official scripts do: nothing missing, not a number or of other rows counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.metrics import pearson, spearman
from bert_jax.tasks.scoring import score_predictions
from bert_jax.tasks.squad_files import read_questions

CONTEXT = "Mira opened the mill in 1902."
YEAR = {"text": "1902", "answer_start": 24}


def questions(path: Path, *items: dict[str, Any]) -> Path:
    qas = [{"id": f"q{number}", "question": "When?", "answers": [], **item} for number, item in enumerate(items)]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    return path


def test_a_missing_prediction_is_an_error_as_in_the_official_script(tmp_path: Path):
    data = questions(tmp_path / "dev.json", {"answers": [YEAR]}, {}, {})
    predictions = tmp_path / "predictions.json"
    predictions.write_text('{"q0": "1902"}')
    with pytest.raises(UserError, match=r"predictions.json: no prediction for 2 of 3 questions .* the first is q1"):
        score_predictions(task="squad_v2", predictions=predictions, data=data)
    predictions.write_text('{"q0": "1902", "q1": "", "q2": "x"}')
    assert score_predictions(task="squad_v2", predictions=predictions, data=data)["exact"] == pytest.approx(200 / 3)


def test_no_answer_scores_are_used_only_where_they_are_named(tmp_path: Path):
    data = questions(tmp_path / "dev.json", {"answers": [YEAR]}, {})
    predictions, odds = tmp_path / "predictions.json", tmp_path / "null_odds.json"
    predictions.write_text('{"q0": "1902", "q1": "x"}')
    odds.write_text('{"q0": -1, "q1": 2.5}')
    files = {"predictions": predictions, "data": data}
    assert "best_f1" not in score_predictions(task="squad_v2", **files)
    named = score_predictions(task="squad_v2", **files, null_odds=odds)
    assert (named["best_f1"], named["best_f1_thresh"]) == (100, -1)
    for content, match in (('{"q0": NaN, "q1": 1}', "q0: .*NaN"), ('{"q0": 1}', "no score for question q1")):
        odds.write_text(content)
        with pytest.raises(UserError, match=rf"null_odds.json: .*{match}"):
            score_predictions(task="squad_v2", **files, null_odds=odds)
    with pytest.raises(UserError, match="only squad_v2 has no-answer scores"):
        score_predictions(task="squad_v1", **files, null_odds=odds)


@pytest.mark.parametrize("value", ["false", "true", 0, 1, [], "no"])
def test_a_truth_value_is_true_or_false(tmp_path: Path, value: Any):
    path = questions(tmp_path / "dev.json", {"answers": [YEAR], "is_impossible": value})
    with pytest.raises(UserError, match=r"qas\[0\]: 'is_impossible' is .*: write true or false, without quotes"):
        read_questions(path)
    assert read_questions(questions(path, {"answers": [], "is_impossible": True}))[0].answers == ()
    assert read_questions(questions(path, {"answers": [YEAR], "is_impossible": None}))[0].answers


def test_answers_count_whatever_is_impossible_says_as_in_the_official_script(tmp_path: Path):
    """`evaluate-v2.0.py` counts a question as answerable if its list of answers is not empty."""
    data = questions(tmp_path / "dev.json", {"answers": [YEAR], "is_impossible": True}, {"is_impossible": False})
    predictions = tmp_path / "predictions.json"
    predictions.write_text('{"q0": "1902", "q1": ""}')
    scores = score_predictions(task="squad_v2", predictions=predictions, data=data)
    assert (scores["HasAns_total"], scores["HasAns_exact"], scores["NoAns_total"]) == (1, 100, 1)
    predictions.write_text('{"q0": "", "q1": ""}')
    assert score_predictions(task="squad_v2", predictions=predictions, data=data)["exact"] == 50


@pytest.mark.parametrize("start", [10**40, -5, 29])
def test_an_answer_starts_in_its_context(tmp_path: Path, start: int):
    path = questions(tmp_path / "dev.json", {"answers": [YEAR, {"text": "1902", "answer_start": start}]})
    match = r"dev.json: data\[0\].*answers\[1\]: 'answer_start' is .*, outside the context of 29 characters: write the"
    with pytest.raises(UserError, match=match) as error:
        read_questions(path)
    assert len(str(error.value)) < 300


def test_ids_are_unique_and_an_answer_without_text_is_none(tmp_path: Path):
    path = tmp_path / "dev.json"
    with pytest.raises(UserError, match=r"qas\[1\]: id '1' is also that of data\[0\].paragraphs\[0\].qas\[0\]"):
        read_questions(questions(path, {"id": 1}, {"id": "1"}))
    with pytest.raises(UserError, match="'id' is missing or not a text"):
        read_questions(questions(path, {"id": True}))
    empty = [{"text": "", "answer_start": -1}, {"text": " ", "answer_start": 0}]
    found = read_questions(questions(path, {"answers": empty}, {"answers": [*empty, YEAR]}))
    assert [[answer.text for answer in question.answers or ()] for question in found] == [[], ["1902"]]
    with pytest.raises(UserError, match=r"question q0 has no answers \(1 of 2"):
        read_questions(questions(path, {"answers": empty}, {"answers": [YEAR]}), with_null=False)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "", "much"])
def test_a_prediction_that_is_no_number_is_named_and_never_ranked(tmp_path: Path, value: str):
    columns = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    rows = "".join(f"{i}\tx\tx\tx\tx\tx\tx\ta\tb\t{i}.0\n" for i in range(3))
    (tmp_path / "dev.tsv").write_text(columns + rows)
    predictions = tmp_path / "STS-B.tsv"
    predictions.write_text(f"index\tprediction\n0\t1.0\n1\t{value}\n2\t3.0\n")
    with pytest.raises(UserError, match=rf"STS-B.tsv line 3: '{value}' is not a number: fix column prediction"):
        score_predictions(task="stsb", predictions=predictions, data=tmp_path / "dev.tsv")
    predictions.write_text("index\tprediction\n0\t1.0\n2\t3.0\n1\t2.0\n")
    with pytest.raises(UserError, match=r"STS-B.tsv line 3: index '2', expected 1: sort the rows"):
        score_predictions(task="stsb", predictions=predictions, data=tmp_path / "dev.tsv")
    wrong = np.array([1.0, np.nan, 3.0, 2.0])
    assert (spearman(wrong, labels=np.arange(4.0)), pearson(wrong, labels=np.arange(4.0))) == (0, 0)
