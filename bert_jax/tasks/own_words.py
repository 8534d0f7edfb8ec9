"""Own data whose outputs belong to words or endings: tags, answers in a context, choices."""

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
    """Tag words: a list of words and a list of tags a record, O, B-TYPE, I-TYPE."""

    def read(self, split: str) -> Sequence[Sentence]:
        """Return the records of a split; test may lack tags."""
        records = read_records(self.data, split=split)
        return [self._sentence(record, split, number) for number, record in enumerate(records)]

    def _sentence(self, record: Record, split: str, number: int) -> Sentence:
        words = record.words(self.own.text, option="text")
        if self.is_unlabelled(record, split=split):
            return Sentence(words, ("O",) * len(words), number, place=record.place, labeled=False)
        tags = record.words(self.own.label, option="label")
        if len(words) != len(tags):
            raise UserError(f"{record.place}: {len(words)} words and {len(tags)} tags: give one tag a word")
        try:
            return Sentence(words, tuple(to_iob2(tags)), number, tags, record.place)
        except UserError as error:
            raise UserError(f"{record.place}: {error}") from error


class OwnSpanTask(OwnTask, SpanTask):
    """Answer questions by a span of a context; an empty or missing answer means that there is none.

    A list holds several right answers, of which training takes the first. A test set that has the column in no record
    is unlabelled.
    """

    def __init__(self, *, data: DataOptions, own: OwnOptions, squad: SquadOptions):
        """Take the options."""
        SpanTask.__init__(self, self.name, data=data, squad=squad, with_null=True)
        self.own = own

    def read(self, split: str) -> Sequence[Question]:
        """Return the records of a split."""
        own = self.own
        records = list(read_records(self.data, split=split))
        unlabelled = not any(own.label in record.fields for record in records)
        if unlabelled and records and split != "test":
            records[0].field(own.label, option="label")  # a mistyped name: said by its record
        scored = split != "train" or self.data.dev_fraction > 0  # by id; in train ids say nothing
        questions: list[Question] = []
        ids: set[str] = set()
        for number, record in enumerate(records):
            text = record.text(own.text, option="text")
            context = record.text(own.text_pair, option="text_pair")
            name = str(number if record.fields.get("id") is None else record.fields["id"])
            if scored and name in ids:
                raise UserError(
                    f"{record.place}: id {name!r} stands in an earlier record too: give each question its own"
                )
            answers = None if unlabelled else self._answers(record)
            ids.add(name)
            questions.append(Question(name, text, context, answers, context))
        return questions

    def _answers(self, record: Record) -> tuple[Answer, ...]:
        own = self.own
        given, start = record.fields.get(own.label), record.fields.get(own.answer_start, 0)
        texts_given = given if isinstance(given, list) else [given] if given not in (None, "") else []
        if not texts_given:
            return ()
        starts = start if isinstance(start, list) else [start] * len(texts_given)
        if len(starts) != len(texts_given):
            raise UserError(
                f"{record.place}: {len(texts_given)} answers and {len(starts)} of {own.answer_start!r}: give one an "
                "answer"
            )
        return tuple(
            Answer(record.as_text(text, name=own.label), self._start(at, record))
            for text, at in zip(texts_given, starts, strict=True)
        )

    def _start(self, written: Any, record: Record) -> int:
        try:
            return int(written)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{record.place}: column {self.own.answer_start!r} is no number of a character: count from 0"
            ) from None


class OwnChoiceTask(OwnTask, ChoiceTask):
    """Choose among the same number of endings in every record."""

    def read(self, split: str) -> Sequence[ChoiceExample]:
        """Return the records of a split; the label is the right choice's number from 0."""
        return [self._example(record, split) for record in read_records(self.data, split=split)]

    @functools.cached_property
    def _first(self) -> tuple[str, int]:
        """Return place and number of choices of train's first record, which all others must have."""
        for record in read_records(self.data, split="train"):
            return record.place, len(self._endings(record))
        return "train", 0

    def _endings(self, record: Record) -> list[str]:
        names = [name.strip() for name in self.own.choices.split(",")]
        if len(names) > 1:
            return [record.text(name, option="choices") for name in names]
        endings = record.field(names[0], option="choices")
        if not isinstance(endings, list):
            raise UserError(
                f"{record.place}: column {names[0]!r} is no list: name one column a choice, parted by commas"
            )
        if len(endings) < 2:
            raise UserError(f"{record.place}: {len(endings)} choices in column {names[0]!r}: write at least two")
        return [record.as_text(ending, name=names[0]) for ending in endings]

    def _example(self, record: Record, split: str) -> ChoiceExample:
        own = self.own
        endings = tuple(self._endings(record))
        first, count = self._first
        if count and len(endings) != count:
            raise UserError(
                f"{record.place}: {len(endings)} choices where {first} has {count}: give every record of train, dev "
                "and test the same number"
            )
        text = record.text(own.text, option="text")
        written = record.fields.get(own.label)
        if self.is_unlabelled(record, split=split):
            return ChoiceExample(text, endings, None)
        if str(written) not in map(str, range(len(endings))):
            raise UserError(
                f"{record.place}: unknown label {written!r}: write the right choice's number, 0 to {len(endings) - 1}"
            )
        return ChoiceExample(text, endings, int(str(written)))
