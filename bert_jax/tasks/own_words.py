"""Tasks on custom data that predict words or endings: tags, answer spans, multiple choice."""

import functools
from collections.abc import Sequence
from typing import Any

from bert_jax.config.task_options import DataOptions, OwnOptions, SquadOptions
from bert_jax.errors import UserError
from bert_jax.tasks.entity_metrics import to_iob2
from bert_jax.tasks.ner import Sentence, TagTask
from bert_jax.tasks.own_records import OwnTask, Record, read_records
from bert_jax.tasks.squad import SpanTask
from bert_jax.tasks.squad_files import Answer, Question
from bert_jax.tasks.swag import ChoiceExample, ChoiceTask


class OwnTagTask(OwnTask, TagTask):
    """Tagging. A record has a list of words and a list of tags: O, B-TYPE or I-TYPE."""

    def read(self, split: str) -> Sequence[Sentence]:
        """Return the sentences of a split. Only test may lack tags."""
        records = read_records(self.data, split=split)
        return [self._sentence(record, split, number) for number, record in enumerate(records)]

    def _sentence(self, record: Record, split: str, number: int) -> Sentence:
        words = record.words(self.own.text, option="text")
        if self.is_unlabeled(record, split=split):
            return Sentence(words, ("O",) * len(words), number, location=record.location, labeled=False)
        tags = record.words(self.own.label, option="label")
        if len(words) != len(tags):
            raise UserError(f"{record.location}: {len(words)} words but {len(tags)} tags: give one tag per word")
        try:
            return Sentence(words, tuple(to_iob2(tags)), number, tags, record.location)
        except UserError as error:
            raise UserError(f"{record.location}: {error}") from error


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
        unlabeled = not any(own.label in record.fields for record in records)
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
        own = self.own
        answer, start = record.fields.get(own.label), record.fields.get(own.answer_start, 0)
        answers = answer if isinstance(answer, list) else [answer] if answer not in (None, "") else []
        if not answers:
            return ()
        starts = start if isinstance(start, list) else [start] * len(answers)
        if len(starts) != len(answers):
            raise UserError(
                f"{record.location}: {len(answers)} answers but {len(starts)} values in {own.answer_start!r}: give "
                "one per answer"
            )
        return tuple(
            Answer(record.as_text(text, name=own.label), self._start(offset, record))
            for text, offset in zip(answers, starts, strict=True)
        )

    def _start(self, value: Any, record: Record) -> int:
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{record.location}: column {self.own.answer_start!r} is {value!r}: write the index of the answer's "
                "first character in the context, from 0"
            ) from None


class OwnChoiceTask(OwnTask, ChoiceTask):
    """Multiple choice, with the same number of endings in every record."""

    def read(self, split: str) -> Sequence[ChoiceExample]:
        """Return the examples of a split. The label is the index of the correct choice, from 0."""
        return [self._example(record, split) for record in read_records(self.data, split=split)]

    @functools.cached_property
    def _first(self) -> tuple[str, int]:
        """Return the location and the number of choices of train's first record. All other records must match it."""
        for record in read_records(self.data, split="train"):
            return record.location, len(self._endings(record))
        return "train", 0

    def _endings(self, record: Record) -> list[str]:
        names = [name.strip() for name in self.own.choices.split(",")]
        if len(names) > 1:
            return [record.text(name, option="choices") for name in names]
        endings = record.field(names[0], option="choices")
        if not isinstance(endings, list):
            raise UserError(
                f"{record.location}: column {names[0]!r} is not a list: write a list of endings, or name one column "
                "per choice, separated by commas, in config.own.choices"
            )
        if len(endings) < 2:
            raise UserError(f"{record.location}: {len(endings)} choices in column {names[0]!r}: write at least two")
        return [record.as_text(ending, name=names[0]) for ending in endings]

    def _example(self, record: Record, split: str) -> ChoiceExample:
        own = self.own
        endings = tuple(self._endings(record))
        first, count = self._first
        if count and len(endings) != count:
            raise UserError(
                f"{record.location}: {len(endings)} choices, but {first} has {count}: give every record of train, dev "
                "and test the same number"
            )
        text = record.text(own.text, option="text")
        label = record.fields.get(own.label)
        if self.is_unlabeled(record, split=split):
            return ChoiceExample(text, endings, None)
        if str(label) not in map(str, range(len(endings))):
            raise UserError(
                f"{record.location}: unknown label {label!r}: write the index of the correct choice, 0 to "
                f"{len(endings) - 1}"
            )
        return ChoiceExample(text, endings, int(str(label)))
