"""Read SQuAD's official files: what is missing or of another type is one line that names the place in the file."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.files import read_json

FILES = {
    "squad_v1": {"train": ("train-v1.1.json", "train-v1.1.reconstructed.json.xz"), "dev": ("dev-v1.1.json",)},
    "squad_v2": {"train": ("train-v2.0.json",), "dev": ("dev-v2.0.json",)},
}
_FORM = "data > paragraphs > context, qas > id, question, answers > text, answer_start"
_KINDS: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Hold an answer and the place of its first character in the context."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class Question:
    """Hold a question with its context; no answers: unanswerable, None: not known."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None
    group: Any  # the article


def read_questions(path: Path, *, with_null: bool = True, skip_unanswered: bool = False) -> list[Question]:
    """Return the questions of a file in the official form, all with their answers or all without.

    A file is unlabelled if no question has `answers`; where every question has an answer (`with_null` false: v1.1),
    also if all lists of answers are empty. v1.1's official script cannot score a question without answers, so one
    among others is refused, or left out with `skip_unanswered`.

    Raises:
      UserError: if it is missing, no JSON or of another form, or some questions alone lack their answers.
    """
    questions = list(_questions(read_json(path), place=str(path)))
    lacking = [q for q in questions if q.answers is None or not (q.answers or with_null)]
    if not lacking:
        return questions
    if len(lacking) == len(questions):
        return [dataclasses.replace(question, answers=None) for question in questions]
    if skip_unanswered and not with_null:
        return [question for question in questions if question.answers]
    cure = "" if with_null else ", leave training questions out with --config.squad.skip_bad_answers=true"
    form = "an unanswerable one has an empty list" if with_null else "SQuAD 2.0 (squad_v2) has unanswerable ones"
    raise UserError(
        f"{path}: question {lacking[0].id} has no answers ({len(lacking)} of {len(questions)} such questions): write "
        f"them{cure}; {form}"
    )


def _questions(content: Any, *, place: str) -> Iterator[Question]:
    for number, article in enumerate(_get(content, "data", list, place=place)):
        at_article = f"{place}: data[{number}]"
        for index, paragraph in enumerate(_get(article, "paragraphs", list, place=at_article)):
            at_paragraph = f"{at_article}.paragraphs[{index}]"
            context = _get(paragraph, "context", str, place=at_paragraph)
            for order, item in enumerate(_get(paragraph, "qas", list, place=at_paragraph)):
                yield _question(item, context=context, group=number, place=f"{at_paragraph}.qas[{order}]")


def _question(item: Any, *, context: str, group: int, place: str) -> Question:
    text = _get(item, "question", str, place=place)
    name = item.get("id")
    if not isinstance(name, str | int):
        raise _wrong("id", str, place=place)
    if item.get("is_impossible"):
        return Question(str(name), text, context, (), group)
    if item.get("answers") is None:
        return Question(str(name), text, context, None, group)
    answers = [
        Answer(*(_get(answer, key, kind, place=f"{place}.answers[{n}]") for key, kind in _ANSWER))
        for n, answer in enumerate(_get(item, "answers", list, place=place))
    ]
    return Question(str(name), text, context, tuple(answers), group)


_ANSWER: Sequence[tuple[str, type]] = (("text", str), ("answer_start", int))


def _get(value: Any, key: str, kind: type, *, place: str) -> Any:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise _wrong(key, kind, place=place)
    return found


def _wrong(key: str, kind: type, *, place: str) -> UserError:
    return UserError(f"{place}: holds no {key!r} that is {_KINDS[kind]}: not in SQuAD's form ({_FORM}), mend the file")
