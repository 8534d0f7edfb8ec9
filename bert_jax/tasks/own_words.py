"""Tasks on custom data that predict spans or endings: questions and multiple choice."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.config.task_options import DataOptions, OwnOptions, SquadOptions
from bert_jax.errors import UserError, counted
from bert_jax.json_forms import kind_of, shown
from bert_jax.tasks.own_records import OwnTask, Record, read_records
from bert_jax.tasks.squad import SpanTask
from bert_jax.tasks.squad_files import Answer, Question, check_start
from bert_jax.tasks.swag import ChoiceExample, ChoiceTask


class OwnSpanTask(OwnTask, SpanTask):
    """Question answering: the answer is a span of the context.

    An empty or missing answer marks the question as unanswerable. Of a list of correct answers, training uses the
    first. A test set without the answer column in any record is unlabeled.
    """

    def __init__(self, *, data: DataOptions, own: OwnOptions, squad: SquadOptions):
        """Set the task up with its options."""
        SpanTask.__init__(self, self.name, data=data, squad=squad, with_null=True)
        self.own = own

    def read(self, split: str) -> Sequence[Question]:
        """Return the questions of a split."""
        own = self.own
        records = list(read_records(self.data, split=split))
        named = {own.label, *(["answers"] if own.label == "answer" else [])}
        columns = ("text", own.text), ("text_pair", own.text_pair)
        unlabeled = not any(named & record.fields.keys() for record in records)
        if unlabeled and records and split != "test":
            records[0].require(*columns, ("label", own.label))  # raises: the column's name is mistyped
        scored = split != "train" or self.data.dev_fraction > 0  # scores are looked up by id; training ignores ids
        questions: list[Question] = []
        ids: set[str] = set()
        for number, record in enumerate(records):
            record.require(*columns)
            text = record.text(own.text, option="text")
            context = record.text(own.text_pair, option="text_pair")
            name = _name(record, number)
            if scored and name in ids:
                raise UserError(
                    f"{record.location}: id {name!r} also appears in an earlier record: give each question its own id"
                )
            ids.add(name)
            placed = () if unlabeled else self._answers(record)
            answers = tuple(Answer(answer, self._start(start, record, context)) for answer, start in placed)
            has_starts = all(start is not _NO_START for _, start in placed)
            questions.append(Question(name, text, context, None if unlabeled else answers, context, has_starts))
        return questions

    def _answers(self, record: Record) -> list[tuple[str, Any]]:
        """Return the right answers, each with its start as the record has it. Answers without text are left out."""
        own = self.own
        answer, start = self._answer_of(record), record.fields.get(own.answer_start, _NO_START)
        if isinstance(answer, Mapping):  # the form of SQuAD in HuggingFace datasets: lists of texts and starts
            answer, start = _text_and_start(answer, record=record, name=own.label)
        elif isinstance(answer, list) and answer and all(isinstance(item, Mapping) for item in answer):
            pairs = [_text_and_start(item, record=record, name=own.label) for item in answer]  # that of SQuAD's files
            answer, start = [text for text, _ in pairs], [offset for _, offset in pairs]
        answers = answer if isinstance(answer, list) else [answer] if answer not in (None, "") else []
        if not answers:
            return []
        starts = start if isinstance(start, list) else [start]
        if start is _NO_START:
            starts = [start] * len(answers)
        if len(starts) != len(answers):
            raise UserError(
                f"{record.location}: {counted(len(answers), 'answer')} but {counted(len(starts), 'value')} in "
                f"{own.answer_start!r}: give one per answer"
            )
        texts = [record.as_text(text, name=own.label) for text in answers]
        return [(text, offset) for text, offset in zip(texts, starts, strict=True) if text.strip()]

    def _answer_of(self, record: Record) -> Any:
        """Return the field of the answer; `answers` if the default column is missing, as in HuggingFace datasets."""
        label = self.own.label
        return record.fields.get("answers" if label == "answer" and label not in record.fields else label)

    def _start(self, value: Any, record: Record, context: str) -> int:
        """Return the index of an answer's first character; 0 if the record does not say it."""
        if value is _NO_START:
            return 0
        what = f"{record.location}: column {self.own.answer_start!r}"
        start = _whole_number(value, of_table=record.of_table)
        if start is None:
            raise UserError(
                f"{what} is {shown(value)}: write the index of the answer's first character in the context, from 0"
            )
        check_start(start, context=context, what=what, otherwise=", or leave it out: then the first occurrence counts")
        return start


_NO_START = object()  # the record does not say where an answer is


def _name(record: Record, number: int) -> str:
    """Return the id of a question: that of its record, else its number."""
    value = record.fields.get("id")
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise UserError(f"{record.location}: column 'id' is {shown(value)}: write a text or a number")
    return str(number if value is None else value)


def _whole_number(value: Any, *, of_table: bool) -> int | None:
    """Return a whole number, or None for another value. pandas writes those of a column with gaps as 13.0."""
    if of_table and isinstance(value, str):
        try:
            return int(value) if "." not in value else _whole_number(float(value), of_table=False)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _text_and_start(answer: Mapping[str, Any], *, record: Record, name: str) -> tuple[Any, Any]:
    if "text" not in answer:
        raise UserError(
            f"{record.location}: column {name!r} holds {kind_of(answer)} without 'text': write "
            '{"text": ["..."], "answer_start": [0]}'
        )
    return answer["text"], answer.get("answer_start", _NO_START)


class OwnChoiceTask(OwnTask, ChoiceTask):
    """Multiple choice. Records may have different numbers of endings."""

    def read(self, split: str) -> Sequence[ChoiceExample]:
        """Return the examples of a split. The label is the index of the correct choice, from 0."""
        return [self._example(record, split) for record in read_records(self.data, split=split)]

    @functools.cached_property
    def _most(self) -> int:
        most = 0
        for split in ("train", *self.eval_splits(), *self.test_splits()):
            with contextlib.suppress(UserError):  # what is wrong with a file is reported when it is loaded itself
                records = read_records(self.data, split=split)
                most = max((most, *(len(self._endings(record)) for record in records)))
        return most

    def most_endings(self, examples: Sequence[ChoiceExample]) -> int:
        """Return the largest number of endings in train, dev and test: their sequences have one shape."""
        return max(self._most, super().most_endings(examples))

    def _endings(self, record: Record) -> list[str]:
        names = [name.strip() for name in self.own.choices.split(",")]
        if len(names) > 1:
            texts = [record.text(name, option="choices") for name in names]
            while record.of_table and texts and not texts[-1].strip():
                texts.pop()  # a row with fewer choices than columns
            if len(texts) < 2:
                raise UserError(f"{record.location}: {len(texts)} choices in {', '.join(names)}: write at least two")
            return texts
        endings = record.field(names[0], option="choices")
        if isinstance(endings, str) and record.of_table:
            endings = record.listed(endings, name=names[0])
        if not isinstance(endings, list):
            raise UserError(
                f"{record.location}: column {names[0]!r} is not a list: write a list of endings, or name one column "
                "per choice, separated by commas, in config.own.choices"
            )
        if len(endings) < 2:
            raise UserError(
                f"{record.location}: {counted(len(endings), 'choice')} in column {names[0]!r}: write at least two"
            )
        return [record.as_text(ending, name=names[0]) for ending in endings]

    def _example(self, record: Record, split: str) -> ChoiceExample:
        own = self.own
        unlabeled = self.is_unlabeled(record, split=split)
        choices = [("choices", name.strip()) for name in own.choices.split(",")]
        record.require(("text", own.text), *choices, *(() if unlabeled else [("label", own.label)]))
        endings = tuple(self._endings(record))
        text = record.text(own.text, option="text")
        label = record.fields.get(own.label)
        if unlabeled:
            return ChoiceExample(text, endings, None)
        if str(label) not in map(str, range(len(endings))):
            raise UserError(
                f"{record.location}: unknown label {shown(label)}: write the index of the correct choice, 0 to "
                f"{len(endings) - 1}"
            )
        return ChoiceExample(text, endings, int(str(label)))
