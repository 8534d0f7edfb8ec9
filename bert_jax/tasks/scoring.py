"""Scores of a predictions file against the official data file, for `evaluate --task=...`."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bert_jax.config.task_options import DataOptions
from bert_jax.errors import UserError, choose_one
from bert_jax.json_forms import Finite, fit
from bert_jax.tasks import glue, metrics, squad_metrics
from bert_jax.tasks.conll import Sentence, num_columns, read_conll
from bert_jax.tasks.entity_metrics import conlleval_record, scheme_of, score_tags
from bert_jax.tasks.files import Row, column, finite_number, numbered_lines, read_json, read_text, read_tsv
from bert_jax.tasks.squad_files import FILES, read_questions
from bert_jax.tasks.swag import SwagTask

TASKS = (*glue.TASKS, *FILES, "swag", "ner")


def score_predictions(
    *, task: str, predictions: str | Path, data: str | Path, null_odds: str | Path = ""
) -> dict[str, float]:
    """Return the metrics that the official script prints: percentages for SQuAD, fractions for the other tasks.

    `null_odds` is a file with the no-answer scores of SQuAD 2.0, for the best thresholds.

    Raises:
      UserError: for an unknown task, or files that are missing, wrong, or do not belong together.
    """
    predictions, data = Path(predictions), Path(data)
    if null_odds and task != "squad_v2":
        raise UserError(f"--null_odds={null_odds}: only squad_v2 has no-answer scores: omit the flag")
    if task in FILES:
        return _squad(predictions, data, with_null=task == "squad_v2", null_odds=null_odds)
    if task in glue.TASKS:
        return _glue(task, predictions, data)
    if task == "swag":
        return _swag(predictions, data)
    if task == "ner":
        return _ner(predictions, data)
    raise UserError(f"--task={task}: {choose_one(task, TASKS)}")


def _squad(predictions: Path, data: Path, *, with_null: bool, null_odds: str | Path) -> dict[str, float]:
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
    if missing := [question for question in answers if question not in texts]:
        raise UserError(
            f"{predictions}: no prediction for {len(missing)} of {len(answers)} questions of {data}, the first is "
            f"{missing[0]}: predict all of them; an empty text means no answer"
        )
    # The predictions already contain the empty answers, so the odds serve only to find the best thresholds.
    result = squad_metrics.evaluate_v2(texts, answers=answers)
    if null_odds:
        scores = _null_odds(Path(null_odds), questions=answers)
        sweep = squad_metrics.evaluate_v2(texts, answers=answers, no_answer_scores=scores)
        result |= {name: value for name, value in sweep.items() if name.startswith("best_")}
    return result


def _null_odds(path: Path, *, questions: Iterable[str]) -> dict[str, float]:
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: not a JSON object from question id to number: name another file with --null_odds")
    for question in questions:
        if question not in content:
            raise UserError(f"{path}: no score for question {question}: give the file of the same predictions")
        try:
            fit(content[question], Finite)
        except ValueError as error:
            raise UserError(
                f"{path}: question {question}: not a JSON object from question id to number ({error}): fix the file"
            ) from None
    return {question: float(content[question]) for question in questions}


def _glue(task: str, predictions: Path, data: Path) -> dict[str, float]:
    options = DataOptions(directory=str(data.parent), test_file=data.name, dev_file=data.name)
    examples = glue.GlueTask(task, data=options).read("test" if not data.name.startswith("dev") else "dev")
    spec = glue.TASKS[task]
    rows = list(read_tsv(predictions))
    fields = [column(row, "prediction") for row in rows]
    _check_count(len(fields), len(examples), predictions, data)
    labels = [example.label for example in examples]
    if any(label is None for label in labels):
        raise UserError(f"{data}: no labels in this file: give a labeled one")
    if not spec.labels:
        numbers = np.array(
            [finite_number(row.fields["prediction"], location=row.location, name="prediction") for row in rows]
        )
        _check_order(rows)
        return glue.named_metrics(numbers, labels=np.array(labels, np.float64), names=spec.metrics)
    values = spec.values or spec.labels
    for number, field in enumerate(fields, start=2):
        if field not in values:
            raise UserError(
                f"{predictions} line {number}: unknown label {field!r}: the labels of {task} are {', '.join(values)}"
            )
    _check_order(rows)
    ids = np.array([values.index(field) for field in fields], np.int64)
    return glue.named_metrics(ids, labels=np.array(labels, np.int64), names=spec.metrics)


def _check_order(rows: Sequence[Row]) -> None:
    """Check that the rows are those of the data file in order."""
    for number, row in enumerate(rows):
        if row.fields.get("index", str(number)).strip() != str(number):
            raise UserError(f"{row.location}: index {row.fields['index']!r}, expected {number}: sort the rows by index")


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
    gold = _gold_sentences(data, words=[sentence.words for sentence in predicted])
    _check_count(len(predicted), len(gold), predictions, data)
    for number, (first, second) in enumerate(zip(predicted, gold, strict=True), start=1):
        if first.words != second.words:
            raise UserError(
                f"{predictions}: sentence {number} has other words than in {data}: give the data file that was "
                "predicted"
            )
    tags = [sentence.tags for sentence in gold]
    scheme = scheme_of(tags)
    scores = score_tags([sentence.tags for sentence in predicted], gold=tags, scheme=scheme)
    accuracy = _accuracy_as_written(predictions, predicted, gold=tags)
    if accuracy is not None:
        scores = dataclasses.replace(scores, word_accuracy=accuracy)
    return conlleval_record(scores, scheme=scheme)


def _accuracy_as_written(
    predictions: Path, predicted: Sequence[Sentence], *, gold: Sequence[Sequence[str]]
) -> float | None:
    """Return the word accuracy of a file that also has the gold tags, before the last column; None for another file.

    `conlleval` compares the two columns as they are: I-PER after O is not B-PER, though both begin the same entity.
    """
    if num_columns(predictions) < 3:
        return None
    try:
        written = read_conll(predictions, tag_column=-2)
    except UserError:
        return None
    if [list(sentence.tags) for sentence in written] != [list(tags) for tags in gold]:
        return None
    pairs = [
        pair for p, g in zip(predicted, written, strict=True) for pair in zip(p.file_tags, g.file_tags, strict=True)
    ]
    return sum(first == second for first, second in pairs) / max(len(pairs), 1)


def _gold_sentences(data: Path, *, words: Sequence[tuple[str, ...]]) -> list[Sentence]:
    """Return the sentences of the data file. The predictions file's words show which of its columns has the words."""
    for column_number in range(num_columns(data) - 1):
        try:
            sentences = read_conll(data, tag_column=-1, word_column=column_number)
        except UserError:
            if column_number == 0 and num_columns(data) == 2:
                raise
            continue
        if [sentence.words for sentence in sentences] == list(words):
            return sentences
    return read_conll(data, tag_column=-1)


def _check_count(count: int, expected: int, predictions: Path, data: Path) -> None:
    if count != expected:
        lines = sum(1 for _ in numbered_lines(predictions))
        raise UserError(
            f"{predictions}: {count} predictions ({lines} lines), but {data} has {expected} rows: give the data file "
            "that was predicted"
        )
