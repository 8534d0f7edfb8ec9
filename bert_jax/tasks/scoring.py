"""Score a predictions file against the official data file, for `evaluate --task=...`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_jax.config.task_options import DataOptions
from bert_jax.errors import UserError
from bert_jax.tasks import glue, metrics, squad_metrics
from bert_jax.tasks.entity_metrics import score_entities
from bert_jax.tasks.files import numbered_lines, read_json, read_text, read_tsv
from bert_jax.tasks.ner import read_conll
from bert_jax.tasks.squad_files import FILES, read_questions
from bert_jax.tasks.swag import SwagTask

TASKS = (*glue.TASKS, *FILES, "swag", "ner")


def score_predictions(*, task: str, predictions: str | Path, data: str | Path) -> dict[str, float]:
    """Return the figures that the official script prints, in per cent for SQuAD and as fractions elsewhere.

    Raises:
      UserError: for an unknown task, or files that are missing, wrong or do not belong together.
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
        raise UserError(f"{data}: has no answers: give a labeled file")
    answers = {q.id: [answer.text for answer in q.answers or ()] for q in questions}
    texts = read_json(predictions)
    if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
        raise UserError(f"{predictions}: not SQuAD's predictions form: one JSON object, question id to answer text")
    if not answers.keys() & texts.keys():
        raise UserError(f"{predictions}: answers none of the questions of {data}: give the data file it was made from")
    if not with_null:
        return squad_metrics.evaluate_v1(texts, answers=answers)
    odds = predictions.with_name("null_odds.json")
    scores = read_json(odds) if odds.is_file() else None
    if scores is not None:
        try:
            scores = {question: float(score) for question, score in scores.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{odds}: not one JSON object, question id to number: mend or remove it") from error
    # The file's empty answers are the decision already taken: the odds only give the best thresholds.
    result = squad_metrics.evaluate_v2(texts, answers=answers)
    if scores is not None and scores.keys() >= texts.keys():
        swept = squad_metrics.evaluate_v2(texts, answers=answers, no_answer_scores=scores)
        result |= {name: value for name, value in swept.items() if name.startswith("best_")}
    return result


def _glue(task: str, predictions: Path, data: Path) -> dict[str, float]:
    options = DataOptions(directory=str(data.parent), test_file=data.name, dev_file=data.name)
    examples = glue.GlueTask(task, data=options).read("test" if not data.name.startswith("dev") else "dev")
    spec = glue.TASKS[task]
    written = [row.fields.get("prediction", "") for row in read_tsv(predictions)]
    _check_count(len(written), len(examples), predictions, data)
    labels = [example.label for example in examples]
    if any(label is None for label in labels):
        raise UserError(f"{data}: has no labels: give a labeled file")
    if not spec.labels:
        try:
            guesses = np.array([float(value) for value in written])
        except ValueError as error:
            raise UserError(f"{predictions}: {error}: write one number a row") from error
        return glue.figures(guesses, labels=np.array(labels, np.float64), names=spec.metrics)
    values = spec.values or spec.labels
    for number, value in enumerate(written, start=2):
        if value not in values:
            raise UserError(f"{predictions} line {number}: unknown label {value!r}: {task} has {', '.join(values)}")
    ids = np.array([values.index(value) for value in written], np.int64)
    return glue.figures(ids, labels=np.array(labels, np.int64), names=spec.metrics)


def _swag(predictions: Path, data: Path) -> dict[str, float]:
    labels = [e.label for e in SwagTask(data=DataOptions(directory=str(data.parent), dev_file=data.name)).read("dev")]
    written = read_text(predictions).split()[1:]
    _check_count(len(written), len(labels), predictions, data)
    if any(label is None for label in labels) or not all(value in ("0", "1", "2", "3") for value in written):
        raise UserError(f"{predictions} and {data}: every row needs a number from 0 to 3")
    guesses = np.array([int(value) for value in written])
    return {"accuracy": metrics.accuracy(guesses, labels=np.array(labels, np.int64))}


def _ner(predictions: Path, data: Path) -> dict[str, float]:
    """Score the last column of a predictions file against the last column of the data file."""
    mine = read_conll(predictions, tag_column=-1)
    gold = read_conll(data, tag_column=-1)
    _check_count(len(mine), len(gold), predictions, data)
    for number, (first, second) in enumerate(zip(mine, gold, strict=True), start=1):
        if first.words != second.words:
            raise UserError(f"{predictions}: the words of sentence {number} are not those of {data}")
    scores = score_entities([s.tags for s in mine], gold=[s.tags for s in gold])
    overall = scores.overall
    types = {f"f1_{kind}": score.f1 for kind, score in scores.by_type.items()}
    return {"precision": overall.precision, "recall": overall.recall, "f1": overall.f1, **types}


def _check_count(mine: int, theirs: int, predictions: Path, data: Path) -> None:
    if mine != theirs:
        lines = sum(1 for _ in numbered_lines(predictions))
        raise UserError(f"{predictions}: {mine} predictions ({lines} lines) where {data} has {theirs} rows")
