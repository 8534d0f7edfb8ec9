"""What tasks on custom data with one prediction per text or pair share: reading, instances and the predictions file."""

import abc
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenization import Tokenizer
from bert_jax.files import write_json_lines
from bert_jax.tasks import texts
from bert_jax.tasks.interface import Instances, Outputs, Split
from bert_jax.tasks.own_labels import is_number
from bert_jax.tasks.own_records import OwnTask, Record, read_records
from bert_jax.tasks.texts import TextExample


class OwnTextTask(OwnTask):
    """A task with one prediction per sentence or sentence pair."""

    def read(self, split: str) -> list[TextExample]:
        """Return the examples of a split. Only test may lack labels."""
        return [self._example(record, split) for record in read_records(self.data, split=split)]

    def _example(self, record: Record, split: str) -> TextExample:
        own = self.own
        unlabeled = self.is_unlabeled(record, split=split)
        labels = () if unlabeled else self.label_columns
        record.require(*self._text_columns, *(("label", name) for name in labels))
        text = record.text(own.text, option="text")
        pair = record.text(own.text_pair, option="text_pair") if own.text_pair else None
        return TextExample(text, pair, None if unlabeled else self.label(record))

    @functools.cached_property
    def _text_columns(self) -> list[tuple[str, str]]:
        """Return the options of the columns of texts with their names."""
        own = self.own
        return [("text", own.text), *([("text_pair", own.text_pair)] if own.text_pair else [])]

    @property
    def label_columns(self) -> Sequence[str]:
        """Return the names of the columns of labels."""
        return (self.own.label,)

    def notes(self, train: Split) -> list[str]:
        """Return how many texts of train are empty, and how many are numbers."""
        return [
            line
            for column, option, values in (
                (self.own.text, "text", [example.text for example in train.examples]),
                (self.own.text_pair, "text_pair", [example.text_pair or "" for example in train.examples]),
            )
            if column
            for line in self._odd_texts(column, option=option, values=values)
        ]

    def _odd_texts(self, column: str, *, option: str, values: Sequence[str]) -> Iterator[str]:
        remedy = f"is {column!r} the column of the texts (config.own.{option})?"
        for kind, is_odd in (("empty", _is_empty), ("numbers", is_number)):
            if count := sum(is_odd(value) for value in values):
                records = read_records(self.data, split="train")
                location = next(r.location for r in records if is_odd(r.text(column, option=option)))
                yield f"{count} of {len(values)} texts of train are {kind}, the first: {location}; {remedy}"

    @abc.abstractmethod
    def label(self, record: Record) -> Any:
        """Return the target of a record, in the form of the task's kind.

        Raises:
          UserError: if the label is missing or wrong.
        """

    @abc.abstractmethod
    def prediction_record(self, output: np.ndarray) -> dict[str, Any]:
        """Return the prediction for an example as fields of a JSON object."""

    def featurize(self, examples: Sequence[TextExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance per example."""
        del training
        return texts.text_features(examples, tokenizer=tokenizer, data=self.data)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write one JSON object per example: its index and its `prediction_record`."""
        records = [{"index": index, **self.prediction_record(output)} for index, output in enumerate(outputs)]
        path = directory / f"own-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, records)
        return [path]


def _is_empty(text: str) -> bool:
    return not text.strip()
