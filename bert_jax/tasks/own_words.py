"""Tasks on custom data that predict spans or endings: questions and multiple choice."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.config.task_options import DataOptions, OwnOptions, SquadOptions
from bert_jax.errors import UserError, counted
from bert_jax.tasks.files import written
from bert_jax.tasks.own_records import OwnTask, Record, read_records
from bert_jax.tasks.squad import SpanTask
from bert_jax.tasks.squad_files import Answer, Question
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
        unlabeled = not any(named & record.fields.keys() for record in records)
        if unlabeled and records and split != "test":
            records[0].field(own.label, option="label")  # raises: the column's name is mistyped
        scored = split != "train" or self.data.dev_fraction > 0  # scores are looked up by id; training ignores ids
        questions: list[Question] = []
        ids: set[str] = set()
        for number, record in enumerate(records):
            text = record.text(own.text, option="text")
            context = record.text(own.text_pair, option="text_pair")
            name = str(number if record.fields.get("id") is None else record.fields["id"])
            if scored and name in ids:
                raise UserError(
                    f"{record.location}: id {name!r} also appears in an earlier record: give each question its own id"
                )
            answers = None if unlabeled else self._answers(record)
            ids.add(name)
            questions.append(Question(name, text, context, answers, context))
        return questions

    def _answers(self, record: Record) -> tuple[Answer, ...]:
        """Return the right answers. Answers without text are left out."""
        own = self.own
        answer, start = self._answer_of(record), record.fields.get(own.answer_start, 0)
        if isinstance(answer, Mapping):  # the form of SQuAD in HuggingFace datasets: lists of texts and starts
            answer, start = answer.get("text"), answer.get("answer_start", 0)
        elif isinstance(answer, list) and answer and all(isinstance(item, Mapping) for item in answer):
            start = [item.get("answer_start", 0) for item in answer]  # the form of SQuAD's files
            answer = [item.get("text") for item in answer]
        answers = answer if isinstance(answer, list) else [answer] if answer not in (None, "") else []
        if not answers:
            return ()
        starts = start if isinstance(start, list) else [start] * len(answers)
        if len(starts) != len(answers):
            raise UserError(
                f"{record.location}: {counted(len(answers), 'answer')} but {counted(len(starts), 'value')} in "
                f"{own.answer_start!r}: give one per answer"
            )
        texts = [record.as_text(text, name=own.label) for text in answers]
        return tuple(
            Answer(text, self._start(offset, record))
            for text, offset in zip(texts, starts, strict=True)
            if text.strip()
        )

    def _answer_of(self, record: Record) -> Any:
        """Return the field of the answer; `answers` if the default column is missing, as in HuggingFace datasets."""
        label = self.own.label
        return record.fields.get("answers" if label == "answer" and label not in record.fields else label)

    def _start(self, value: Any, record: Record) -> int:
        try:
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise TypeError(value)
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{record.location}: column {self.own.answer_start!r} is {written(value)}: write the index of the "
                "answer's first character in the context, from 0"
            ) from None


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
        endings = tuple(self._endings(record))
        text = record.text(own.text, option="text")
        label = record.fields.get(own.label)
        if self.is_unlabeled(record, split=split):
            return ChoiceExample(text, endings, None)
        if str(label) not in map(str, range(len(endings))):
            raise UserError(
                f"{record.location}: unknown label {written(label)}: write the index of the correct choice, 0 to "
                f"{len(endings) - 1}"
            )
        return ChoiceExample(text, endings, int(str(label)))
