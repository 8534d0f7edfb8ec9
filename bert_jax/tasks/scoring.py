"""Scores of a predictions file against the official data file, for `evaluate --task=...`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_jax.config.task_options import DataOptions
from bert_jax.errors import UserError
from bert_jax.json_forms import Finite, fit
from bert_jax.tasks import glue, metrics, squad_metrics
from bert_jax.tasks.entity_metrics import score_entities
from bert_jax.tasks.files import numbered_lines, read_json, read_text, read_tsv
from bert_jax.tasks.ner import read_conll
from bert_jax.tasks.squad_files import FILES, read_questions
from bert_jax.tasks.swag import SwagTask

TASKS = (*glue.TASKS, *FILES, "swag", "ner")


def score_predictions(*, task: str, predictions: str | Path, data: str | Path) -> dict[str, float]:
    """Return the metrics that the official script prints: percentages for SQuAD, fractions for the other tasks.

    Raises:
      UserError: for an unknown task, or files that are missing, wrong, or do not belong together.
    """
    predictions, data = Path(predictions), Path(data)
    if task in FILES:
        return _squad(predictions, data, with_null=task == "squad_v2")
    if task in glue.TASKS:
        return _glue(task, predictions, data)
    if task == "swag":
        return _swag(predictions, data)
    if task == "ner":
        return _ner(predictions, data)
    raise UserError(f"--task={task}: choose one of {', '.join(TASKS)}")


def _squad(predictions: Path, data: Path, *, with_null: bool) -> dict[str, float]:
    questions = read_questions(data, with_null=with_null)
    if any(question.answers is None for question in questions):
        raise UserError(f"{data}: no answers in this file: give a labeled one")
    answers = {q.id: [answer.text for answer in q.answers or ()] for q in questions}
    texts = read_json(predictions)
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        raise UserError(f"{predictions}: not SQuAD predictions: write one JSON object, from question id to answer text")
    if not answers.keys() & texts.keys():
        raise UserError(f"{predictions}: answers no question of {data}: give the data file that was predicted")
    if not with_null:
        return squad_metrics.evaluate_v1(texts, answers=answers)
    odds = predictions.with_name("null_odds.json")
    scores = read_json(odds) if odds.is_file() else None
    if scores is not None:
        try:
            scores = fit(scores, dict[str, Finite])
        except ValueError as error:
            raise UserError(
                f"{odds}: not a JSON object from question id to number ({error}): fix or remove it"
            ) from error
    # The predictions already contain the empty answers, so the odds serve only to find the best thresholds.
    result = squad_metrics.evaluate_v2(texts, answers=answers)
    if scores is not None and scores.keys() >= texts.keys():
        sweep = squad_metrics.evaluate_v2(texts, answers=answers, no_answer_scores=scores)
        result |= {name: value for name, value in sweep.items() if name.startswith("best_")}
    return result


def _glue(task: str, predictions: Path, data: Path) -> dict[str, float]:
    options = DataOptions(directory=str(data.parent), test_file=data.name, dev_file=data.name)
    examples = glue.GlueTask(task, data=options).read("test" if not data.name.startswith("dev") else "dev")
    spec = glue.TASKS[task]
    fields = [row.fields.get("prediction", "") for row in read_tsv(predictions)]
    _check_count(len(fields), len(examples), predictions, data)
    labels = [example.label for example in examples]
    if any(label is None for label in labels):
        raise UserError(f"{data}: no labels in this file: give a labeled one")
    if not spec.labels:
        try:
            numbers = np.array([float(field) for field in fields])
        except ValueError as error:
            raise UserError(f"{predictions}: {error}: write one number per row") from error
        return glue.named_metrics(numbers, labels=np.array(labels, np.float64), names=spec.metrics)
    values = spec.values or spec.labels
    for number, field in enumerate(fields, start=2):
        if field not in values:
            raise UserError(
                f"{predictions} line {number}: unknown label {field!r}: the labels of {task} are {', '.join(values)}"
            )
    ids = np.array([values.index(field) for field in fields], np.int64)
    return glue.named_metrics(ids, labels=np.array(labels, np.int64), names=spec.metrics)


def _swag(predictions: Path, data: Path) -> dict[str, float]:
    labels = [e.label for e in SwagTask(data=DataOptions(directory=str(data.parent), dev_file=data.name)).read("dev")]
    fields = read_text(predictions).split()[1:]
    _check_count(len(fields), len(labels), predictions, data)
    if any(label is None for label in labels) or not all(field in ("0", "1", "2", "3") for field in fields):
        raise UserError(f"{predictions} and {data}: write a number from 0 to 3 in every row")
    choices = np.array([int(field) for field in fields])
    return {"accuracy": metrics.accuracy(choices, labels=np.array(labels, np.int64))}


def _ner(predictions: Path, data: Path) -> dict[str, float]:
    """Score the last column of a predictions file against the last column of the data file."""
    predicted = read_conll(predictions, tag_column=-1)
    gold = read_conll(data, tag_column=-1)
    _check_count(len(predicted), len(gold), predictions, data)
    for number, (first, second) in enumerate(zip(predicted, gold, strict=True), start=1):
        if first.words != second.words:
            raise UserError(
                f"{predictions}: sentence {number} has other words than in {data}: give the data file that was "
                "predicted"
            )
    scores = score_entities([s.tags for s in predicted], gold=[s.tags for s in gold])
    overall = scores.overall
    types = {f"f1_{kind}": score.f1 for kind, score in scores.by_type.items()}
    return {"precision": overall.precision, "recall": overall.recall, "f1": overall.f1, **types}


def _check_count(count: int, expected: int, predictions: Path, data: Path) -> None:
    if count != expected:
        lines = sum(1 for _ in numbered_lines(predictions))
        raise UserError(
            f"{predictions}: {count} predictions ({lines} lines), but {data} has {expected} rows: give the data file "
            "that was predicted"
        )
