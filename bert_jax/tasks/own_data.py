"""Own data: JSON lines, or a TSV file with a header line, by naming columns in the config.

In a TSV file lists (words, tags) are parted by spaces; in JSON lines they are lists or strings parted by spaces.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.entity_metrics import split_tag, to_iob2
from bert_jax.tasks.files import read_json_lines, read_tsv
from bert_jax.tasks.glue import figures
from bert_jax.tasks.interface import Features, Outputs, Split, Task, find_file
from bert_jax.tasks.ner import Sentence, TagTask
from bert_jax.tasks.options import DataOptions, OwnOptions, SquadOptions
from bert_jax.tasks.squad import Answer, Question, SpanTask
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


def _words(value: Any) -> tuple[str, ...]:
    return tuple(value.split()) if isinstance(value, str) else tuple(str(item) for item in value)


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
        values = {str(field(r, name, place=p, option="label")) for p, r in read_records(self.data, split="train")}
        return tuple(sorted(values))

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set if one was named."""
        return ("test",) if self.data.test_file else ()

    def read(self, split: str) -> list[TextExample]:
        """Return the records of a split; test may lack labels."""
        return [self._example(place, record, split) for place, record in read_records(self.data, split=split)]

    def _example(self, place: str, record: dict[str, Any], split: str) -> TextExample:
        own = self.own
        text = str(field(record, own.text, place=place, option="text"))
        pair = str(field(record, own.text_pair, place=place, option="text_pair")) if own.text_pair else None
        if split == "test" and own.label not in record:
            return TextExample(text, pair, None)
        written = field(record, own.label, place=place, option="label")
        if self.kind == "regression":
            try:
                return TextExample(text, pair, float(written))
            except (TypeError, ValueError):
                raise UserError(f"{place}: {written!r} is not a number: mend column {own.label}") from None
        if str(written) not in self.labels:
            raise UserError(f"{place}: unknown label {written!r}: the labels are {', '.join(self.labels)}")
        return TextExample(text, pair, self.labels.index(str(written)))

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
        return [texts.write_json_lines(directory / f"own-{split.name}.jsonl", records)]

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
        """Return the records of a split."""
        sentences = []
        for number, (place, record) in enumerate(read_records(self.data, split=split)):
            words = _words(field(record, self.own.text, place=place, option="text"))
            tags = _words(field(record, self.own.label, place=place, option="label"))
            if len(words) != len(tags):
                raise UserError(f"{place}: {len(words)} words and {len(tags)} tags: give one tag a word")
            try:
                for tag in tags:
                    split_tag(tag)
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            sentences.append(Sentence(words, tuple(to_iob2(tags)), number))
        return sentences


class OwnSpanTask(SpanTask):
    """Answer questions by a span of a context; an empty or missing answer means that there is none."""

    def __init__(self, *, data: DataOptions, own: OwnOptions, squad: SquadOptions):
        """Take the options."""
        super().__init__("own", data=data, squad=squad, with_null=True)
        self.own = own

    def read(self, split: str) -> Sequence[Question]:
        """Return the records of a split."""
        own = self.own
        questions = []
        for number, (place, record) in enumerate(read_records(self.data, split=split)):
            text = str(field(record, own.text, place=place, option="text"))
            context = str(field(record, own.text_pair, place=place, option="text_pair"))
            answer = str(record.get(own.label) or "")
            try:
                start = int(record.get(own.answer_start, 0))
            except (TypeError, ValueError):
                raise UserError(f"{place}: column {own.answer_start!r} is no number of a character") from None
            answers = (Answer(answer, start),) if answer else ()
            questions.append(Question(str(record.get("id", number)), text, context, answers, context))
        return questions


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

    def _example(self, place: str, record: dict[str, Any], split: str) -> ChoiceExample:
        own = self.own
        names = [name.strip() for name in own.choices.split(",")]
        if len(names) == 1:
            endings = field(record, names[0], place=place, option="choices")
            if not isinstance(endings, list):
                raise UserError(f"{place}: column {names[0]!r} is no list: name one column a choice, parted by commas")
        else:
            endings = [field(record, name, place=place, option="choices") for name in names]
        written = record.get(own.label)
        if written is None and split == "test":
            return ChoiceExample(str(record[own.text]), tuple(map(str, endings)), None)
        if str(written) not in map(str, range(len(endings))):
            raise UserError(
                f"{place}: unknown label {written!r}: write the right choice's number, 0 to {len(endings) - 1}"
            )
        text = str(field(record, own.text, place=place, option="text"))
        return ChoiceExample(text, tuple(map(str, endings)), int(str(written)))
