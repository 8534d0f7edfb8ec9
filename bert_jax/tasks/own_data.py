"""Own data: JSON lines, or a TSV file with a header line, by naming columns in the config.

In a TSV file lists (words, tags) are parted by spaces; in JSON lines they are lists or strings parted by spaces.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions, OwnOptions, SquadOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json_lines
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.entity_metrics import to_iob2
from bert_jax.tasks.files import finite_number, read_json_lines, read_tsv
from bert_jax.tasks.glue import figures
from bert_jax.tasks.interface import Features, Outputs, Split, Task, find_file
from bert_jax.tasks.ner import Sentence, TagTask
from bert_jax.tasks.squad import SpanTask
from bert_jax.tasks.squad_files import Answer, Question
from bert_jax.tasks.swag import ChoiceExample, ChoiceTask
from bert_jax.tasks.texts import TextExample


def open_own_task(*, data: DataOptions, own: OwnOptions, squad: SquadOptions) -> Task:
    """Return the task of the kind that the config names."""
    if own.kind == "span":
        return OwnSpanTask(data=data, own=own, squad=squad)
    return {"choice": OwnChoiceTask, "tags": OwnTagTask}.get(own.kind, OwnTextTask)(data=data, own=own)


def read_records(data: DataOptions, *, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a split with their places; the file's name says whether it is TSV or JSON lines."""
    given = {"train": data.train_file, "dev": data.dev_file, "test": data.test_file}[split]
    path = find_file(data.directory or ".", given=given, names=(f"{split}.jsonl", f"{split}.tsv"))
    if ".tsv" in path.suffixes:
        for row in read_tsv(path):
            yield row.place, dict(row.fields)
    else:
        yield from read_json_lines(path)


def field(record: dict[str, Any], name: str, *, place: str, option: str) -> Any:
    """Return a field.

    Raises:
      UserError: if the record has none; the line names the option that said so.
    """
    if name not in record:
        raise UserError(
            f"{place}: there is no column {name!r} (config.own.{option}); the columns are {', '.join(record)}"
        )
    return record[name]


def text_field(record: dict[str, Any], name: str, *, place: str, option: str) -> str:
    """Return a field as text; a number is written out.

    Raises:
      UserError: if the record has none, or null, a list or an object there.
    """
    return _as_text(field(record, name, place=place, option=option), name=name, place=place)


def words_field(record: dict[str, Any], name: str, *, place: str, option: str) -> tuple[str, ...]:
    """Return a field as words: a list of them, or a string parted by spaces.

    Raises:
      UserError: if the record has none, or something else there.
    """
    value = field(record, name, place=place, option=option)
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, list):
        raise UserError(f"{place}: column {name!r} is {value!r}: write a list of words, or words parted by spaces")
    return tuple(_as_text(item, name=name, place=place) for item in value)


def _as_text(value: Any, *, name: str, place: str) -> str:
    if isinstance(value, str | int | float) and value == value:  # NaN is what pandas writes for nothing
        return str(value)
    raise UserError(f"{place}: column {name!r} holds {json.dumps(value)[:60]} where a text belongs: mend the record")


def _unlabelled(record: dict[str, Any], name: str, *, split: str) -> bool:
    """Return whether a record of the test set comes without a label, which it alone may."""
    return split == "test" and record.get(name) is None


class OwnTextTask(Task):
    """Classify, or rate by a number, sentences or pairs."""

    def __init__(self, *, data: DataOptions, own: OwnOptions):
        """Take the options."""
        self.name, self.data, self.own = "own", data, own
        self.kind = own.kind
        self.selection = "spearman" if own.kind == "regression" else "accuracy"

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels that the config gives, else those of train, sorted."""
        if self.kind == "regression":
            return ()
        if self.own.labels:
            return tuple(label.strip() for label in self.own.labels.split(","))
        name = self.own.label
        records = read_records(self.data, split="train")
        return tuple(sorted({text_field(record, name, place=place, option="label") for place, record in records}))

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if one was named."""
        return ("test",) if self.data.test_file else ()

    def read(self, split: str) -> list[TextExample]:
        """Return the records of a split; test may lack labels."""
        return [self._example(place, record, split) for place, record in read_records(self.data, split=split)]

    def _example(self, place: str, record: dict[str, Any], split: str) -> TextExample:
        own = self.own
        text = text_field(record, own.text, place=place, option="text")
        pair = text_field(record, own.text_pair, place=place, option="text_pair") if own.text_pair else None
        if _unlabelled(record, own.label, split=split):
            return TextExample(text, pair, None)
        if self.kind == "regression":
            written = field(record, own.label, place=place, option="label")
            return TextExample(text, pair, finite_number(written, place=place, name=own.label))
        written = text_field(record, own.label, place=place, option="label")
        if written not in self.labels:
            raise UserError(f"{place}: unknown label {written!r}: the labels are {', '.join(self.labels)}")
        return TextExample(text, pair, self.labels.index(written))

    def featurise(self, examples: Sequence[TextExample], *, tokenizer: Tokenizer, training: bool) -> Features:
        """Return one instance an example."""
        del training
        return texts.text_features(examples, tokenizer=tokenizer, max_seq_length=self.data.max_seq_length)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return accuracy, macro F1 and Matthews' correlation, or both correlations."""
        if self.kind == "regression":
            guesses = np.array([float(output[0]) for output in outputs])
            labels = np.array(split.features.targets, np.float64)
            return figures(guesses, labels=labels, names=("spearman", "pearson"))
        guesses, labels = texts.predicted_ids(outputs), texts.label_ids(split)
        return figures(guesses, labels=labels, names=("accuracy", "mcc")) | {
            "macro_f1": metrics.macro_f1(guesses, labels=labels)
        }

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write a JSON object a row: index, prediction, and the scores of all labels."""
        records = []
        for index, output in enumerate(outputs):
            if self.kind == "regression":
                records.append({"index": index, "prediction": float(output[0])})
                continue
            scores = {label: float(score) for label, score in zip(self.labels, output, strict=True)}
            records.append({"index": index, "prediction": self.labels[int(np.argmax(output))], "logits": scores})
        path = directory / f"own-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, records)
        return [path]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst mistakes."""
        if self.kind == "regression":
            return texts.regression_mistakes(split, outputs, count=count)
        return texts.classification_mistakes(split, outputs, labels=self.labels, count=count)

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the confusion table."""
        if self.kind == "regression":
            return {}
        return {"confusion": texts.confusion_table(split, outputs, labels=self.labels)}


class OwnTagTask(TagTask):
    """Tag words: a list of words and a list of tags a record, O, B-TYPE, I-TYPE."""

    def __init__(self, *, data: DataOptions, own: OwnOptions):
        """Take the options."""
        self.name, self.data, self.own = "own", data, own

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if one was named."""
        return ("test",) if self.data.test_file else ()

    def read(self, split: str) -> Sequence[Sentence]:
        """Return the records of a split; test may lack tags."""
        records = read_records(self.data, split=split)
        return [self._sentence(place, record, split, number) for number, (place, record) in enumerate(records)]

    def _sentence(self, place: str, record: dict[str, Any], split: str, number: int) -> Sentence:
        words = words_field(record, self.own.text, place=place, option="text")
        if _unlabelled(record, self.own.label, split=split):
            return Sentence(words, ("O",) * len(words), number, place=place, labelled=False)
        tags = words_field(record, self.own.label, place=place, option="label")
        if len(words) != len(tags):
            raise UserError(f"{place}: {len(words)} words and {len(tags)} tags: give one tag a word")
        try:
            return Sentence(words, tuple(to_iob2(tags)), number, tags, place)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error


class OwnSpanTask(SpanTask):
    """Answer questions by a span of a context; an empty or missing answer means that there is none.

    A list holds several right answers, of which training takes the first. A test set that has the column in no record
    is unlabelled.
    """

    def __init__(self, *, data: DataOptions, own: OwnOptions, squad: SquadOptions):
        """Take the options."""
        super().__init__("own", data=data, squad=squad, with_null=True)
        self.own = own

    def read(self, split: str) -> Sequence[Question]:
        """Return the records of a split."""
        own = self.own
        records = list(read_records(self.data, split=split))
        unlabelled = not any(own.label in record for _, record in records)
        if unlabelled and records and split != "test":
            field(records[0][1], own.label, place=records[0][0], option="label")  # a mistyped name: said by its record
        scored = split != "train" or self.data.dev_fraction > 0  # by id; in train ids say nothing
        questions: list[Question] = []
        ids: set[str] = set()
        for number, (place, record) in enumerate(records):
            text = text_field(record, own.text, place=place, option="text")
            context = text_field(record, own.text_pair, place=place, option="text_pair")
            name = str(number if record.get("id") is None else record["id"])
            if scored and name in ids:
                raise UserError(f"{place}: id {name!r} stands in an earlier record too: give each question its own")
            answers = None if unlabelled else self._answers(place, record)
            ids.add(name)
            questions.append(Question(name, text, context, answers, context))
        return questions

    def _answers(self, place: str, record: dict[str, Any]) -> tuple[Answer, ...]:
        own = self.own
        given, start = record.get(own.label), record.get(own.answer_start, 0)
        texts_given = given if isinstance(given, list) else [given] if given not in (None, "") else []
        if not texts_given:
            return ()
        starts = start if isinstance(start, list) else [start] * len(texts_given)
        if len(starts) != len(texts_given):
            raise UserError(
                f"{place}: {len(texts_given)} answers and {len(starts)} of {own.answer_start!r}: give one an answer"
            )
        return tuple(
            Answer(_as_text(text, name=own.label, place=place), self._start(at, place))
            for text, at in zip(texts_given, starts, strict=True)
        )

    def _start(self, written: Any, place: str) -> int:
        try:
            return int(written)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{place}: column {self.own.answer_start!r} is no number of a character: count from 0"
            ) from None


class OwnChoiceTask(ChoiceTask):
    """Choose among the same number of endings in every record."""

    def __init__(self, *, data: DataOptions, own: OwnOptions):
        """Take the options."""
        self.name, self.data, self.own = "own", data, own

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if one was named."""
        return ("test",) if self.data.test_file else ()

    def read(self, split: str) -> Sequence[ChoiceExample]:
        """Return the records of a split; the label is the right choice's number from 0."""
        return [self._example(place, record, split) for place, record in read_records(self.data, split=split)]

    @functools.cached_property
    def _first(self) -> tuple[str, int]:
        """Return place and number of choices of train's first record, which all others must have."""
        for place, record in read_records(self.data, split="train"):
            return place, len(self._endings(place, record))
        return "train", 0

    def _endings(self, place: str, record: dict[str, Any]) -> list[str]:
        names = [name.strip() for name in self.own.choices.split(",")]
        if len(names) > 1:
            return [text_field(record, name, place=place, option="choices") for name in names]
        endings = field(record, names[0], place=place, option="choices")
        if not isinstance(endings, list):
            raise UserError(f"{place}: column {names[0]!r} is no list: name one column a choice, parted by commas")
        if len(endings) < 2:
            raise UserError(f"{place}: {len(endings)} choices in column {names[0]!r}: write at least two")
        return [_as_text(ending, name=names[0], place=place) for ending in endings]

    def _example(self, place: str, record: dict[str, Any], split: str) -> ChoiceExample:
        own = self.own
        endings = tuple(self._endings(place, record))
        first, count = self._first
        if count and len(endings) != count:
            raise UserError(
                f"{place}: {len(endings)} choices where {first} has {count}: give every record of train, dev and test "
                "the same number"
            )
        text = text_field(record, own.text, place=place, option="text")
        written = record.get(own.label)
        if _unlabelled(record, own.label, split=split):
            return ChoiceExample(text, endings, None)
        if str(written) not in map(str, range(len(endings))):
            raise UserError(
                f"{place}: unknown label {written!r}: write the right choice's number, 0 to {len(endings) - 1}"
            )
        return ChoiceExample(text, endings, int(str(written)))
