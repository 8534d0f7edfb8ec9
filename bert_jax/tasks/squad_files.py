"""Reader of SQuAD's official files. An error about a missing or wrong field gives its path in the file."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.json_forms import shown
from bert_jax.tasks.files import read_json

FILES = {
    "squad_v1": {"train": ("train-v1.1.json", "train-v1.1.reconstructed.json.xz"), "dev": ("dev-v1.1.json",)},
    "squad_v2": {"train": ("train-v2.0.json",), "dev": ("dev-v2.0.json",)},
}
_FORM = "data > paragraphs > context, qas > id, question, answers > text, answer_start"
_KINDS: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and the index of its first character in the context."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None  # empty: unanswerable; None: unlabeled
    group: Any  # the index of the article
    has_starts: bool = True  # False: the file does not say where the answers are
    is_marked_impossible: bool = False  # `is_impossible`; what counts is whether there are answers


def read_questions(path: Path, *, with_null: bool = True, skip_unanswered: bool = False) -> list[Question]:
    """Return the questions of a file in the official format. Either all are labeled or none is.

    An answer without text (with `answer_start` -1, for example) is left out. A question is unanswerable if it has no
    answers, as in the official script, whatever `is_impossible` says of one that has some. A file is unlabeled if no
    question has `answers`. Without `with_null` (v1.1, where every question has an answer) it is also unlabeled if all
    lists of answers are empty. v1.1's official script cannot score a question without answers, so a file in which some
    questions lack answers is an error; `skip_unanswered` skips these questions.

    Raises:
      UserError: if the file is missing, not JSON or in another format, or only some questions have answers.
    """
    questions = _distinct(_questions(read_json(path), location=str(path)))
    lacking = [q for q in questions if q.answers is None or not (q.answers or with_null)]
    if not lacking:
        return questions
    if len(lacking) == len(questions):
        return [dataclasses.replace(question, answers=None) for question in questions]
    if skip_unanswered and not with_null:
        return [question for question in questions if question.answers]
    if with_null:
        remedy = "add them; an unanswerable question has an empty list"
    else:
        remedy = (
            "add them, or skip training questions without answers with --config.squad.skip_bad_answers=true; for "
            "unanswerable questions use squad_v2"
        )
    raise UserError(
        f"{path}: question {lacking[0].id} has no answers ({len(lacking)} of {len(questions)} such questions): {remedy}"
    )


def _distinct(located: Iterator[tuple[str, Question]]) -> list[Question]:
    """Return the questions; predictions are written and scored by id, so two of one id are an error."""
    first: dict[str, str] = {}
    questions = []
    for location, question in located:
        if question.id in first:
            raise UserError(
                f"{location}: id {question.id!r} is also that of {first[question.id].rpartition(': ')[2]}: give each "
                "question its own id"
            )
        first[question.id] = location
        questions.append(question)
    return questions


def _questions(content: Any, *, location: str) -> Iterator[tuple[str, Question]]:
    for number, article in enumerate(_get(content, "data", list, location=location)):
        at_article = f"{location}: data[{number}]"
        for index, paragraph in enumerate(_get(article, "paragraphs", list, location=at_article)):
            at_paragraph = f"{at_article}.paragraphs[{index}]"
            context = _get(paragraph, "context", str, location=at_paragraph)
            for order, item in enumerate(_get(paragraph, "qas", list, location=at_paragraph)):
                at_question = f"{at_paragraph}.qas[{order}]"
                yield at_question, _question(item, context=context, group=number, location=at_question)


def _question(item: Any, *, context: str, group: int, location: str) -> Question:
    text = _get(item, "question", str, location=location)
    name = item.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise _wrong("id", str, location=location)
    impossible = item.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise UserError(f"{location}: 'is_impossible' is {impossible!r:.40}: write true or false, without quotes")
    if item.get("answers") is None:
        return Question(str(name), text, context, () if impossible else None, group)
    answers = []
    for number, value in enumerate(_get(item, "answers", list, location=location)):
        at_answer = f"{location}.answers[{number}]"
        answer = Answer(*(_get(value, key, kind, location=at_answer) for key, kind in _ANSWER))
        if answer.text.strip():
            check_start(answer.start, context=context, what=f"{at_answer}: 'answer_start'")
            answers.append(answer)
    return Question(str(name), text, context, tuple(answers), group, is_marked_impossible=impossible is True)


_ANSWER: Sequence[tuple[str, type]] = (("text", str), ("answer_start", int))


def check_start(start: int, *, context: str, what: str, otherwise: str = "") -> None:
    """Check that an answer starts in its context. `what` is the location and the field, `otherwise` what else to do.

    Raises:
      UserError: if it does not.
    """
    if not 0 <= start < len(context):
        raise UserError(
            f"{what} is {shown(start)}, outside the context of {len(context)} characters: write the index of the "
            f"answer's first character, from 0{otherwise}"
        )


def _get(value: Any, key: str, kind: type, *, location: str) -> Any:
    field = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(field, kind) or isinstance(field, bool):
        raise _wrong(key, kind, location=location)
    return field


def _wrong(key: str, kind: type, *, location: str) -> UserError:
    return UserError(f"{location}: {key!r} is missing or not {_KINDS[kind]}: fix the file; SQuAD's format is {_FORM}")
