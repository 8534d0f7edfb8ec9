"""Multi-label classification of custom data: labels as a list, as text with separators, or as columns of 0 and 1."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.json_forms import shown
from bert_jax.kinds.base import sigmoid
from bert_jax.kinds.multilabel import MultiLabel
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.interface import Outputs, Split, gold_targets
from bert_jax.tasks.metrics import f1_from_counts
from bert_jax.tasks.own_labels import configured_labels, is_truth, label_note, listed, sorted_labels, stray_notes
from bert_jax.tasks.own_records import Record, read_records
from bert_jax.tasks.own_texts import OwnTextTask


class OwnMultiLabelTask(OwnTextTask):
    """Multi-label classification of sentences or pairs."""

    kind = MultiLabel
    selection = "micro_f1"
    selections = ("micro_f1", "macro_f1", "subset_accuracy")

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels in the config, those of the columns, or those of train, sorted.

        Raises:
          UserError: if train has none.
        """
        labels = configured_labels(self.own)
        columns = self.label_columns
        if len(columns) > 1:
            if labels and len(labels) != len(columns):
                raise UserError(
                    f"config.own.labels has {len(labels)} names for the {len(columns)} columns of config.own.label: "
                    "give one per column, or none"
                )
            return labels or tuple(columns)
        if labels:
            return labels
        records = list(read_records(self.data, split="train"))
        if width := self._vector_width(records):
            return tuple(str(number) for number in range(width))
        labels = sorted_labels(name for record in records for name in self._names(record))
        if not labels:
            raise UserError(f"no record of the train set has a label in column {self.own.label!r}: check its file")
        return labels

    @functools.cached_property
    def _vectors(self) -> bool:
        """Return whether the lists of train are vectors of 0 and 1, one number per label."""
        width = self._vector_width(list(read_records(self.data, split="train")))
        if width and width != len(self.labels):
            raise UserError(
                f"config.own.labels names {len(self.labels)} labels, but the lists in column {self.own.label!r} of "
                f"train have {width} numbers, 0 or 1: name {width}"
            )
        return width > 0

    def _vector_width(self, records: list[Record]) -> int:
        """Return the length of the lists if all are vectors of 0 and 1, else 0.

        A list of names repeats no name, and names that are 0 and 1 in every text would say nothing.

        Raises:
          UserError: if a list has another length than the others, or other numbers, or is empty.
        """
        lists = [(record, value) for record in records if isinstance(value := self._value(record), list)]
        bits = [value for _, value in lists if value and all(_is_bit(item) for item in value)]
        repeats = any(len(set(value)) < len(value) for value in bits)
        pairs = len(bits) == len(lists) and all(len(value) == 2 for value in bits)
        if len(lists) < len(records) or not (repeats or pairs):
            return 0
        if any(isinstance(item, str | list | dict) for _, value in lists for item in value):
            return 0
        width = Counter(map(len, bits)).most_common(1)[0][0]
        for record, value in lists:
            self._check_vector(value, record=record, width=width)
        return width

    def _check_vector(self, value: Any, *, record: Record, width: int) -> None:
        if not isinstance(value, list) or len(value) != width or not all(_is_bit(item) for item in value):
            raise UserError(
                f"{record.location}: column {self.own.label!r} is {shown(value)}: write a list of {width} numbers, 0 "
                "or 1, as in the other records"
            )

    def is_unlabeled(self, record: Record, *, split: str) -> bool:
        """Return whether a record of the test set lacks its labels. In a table an empty field means no label."""
        return split == "test" and all(record.fields.get(name) is None for name in self.label_columns)

    @functools.cached_property
    def label_columns(self) -> Sequence[str]:  # type: ignore[override]
        """Return the names of the columns of labels: one, or a column per label."""
        return listed(self.own.label)

    def label(self, record: Record) -> np.ndarray:
        """Return a float32 vector [C], 1 for each label of the record."""
        columns = self.label_columns
        if len(columns) > 1:
            values = [record.field(name, option="label") for name in columns]
            bits = [is_truth(v, record=record, name=n) for n, v in zip(columns, values, strict=True)]
            return np.array(bits, np.float32)
        target = np.zeros(len(self.labels), np.float32)
        if self._vectors:
            value = self._value(record)
            self._check_vector(value, record=record, width=len(target))
            return np.array(value, np.float32)
        target[[record.label_id(name, labels=self.labels) for name in self._names(record)]] = 1
        return target

    def _names(self, record: Record) -> list[str]:
        column, separator = self.own.label, self.own.label_separator
        value = self._value(record)
        if isinstance(value, str) and (record.of_table or separator):
            value = [part.strip() for part in value.split(separator or ",") if part.strip()]
        if not isinstance(value, list):
            raise UserError(
                f"{record.location}: column {column!r} is {shown(value)}: write a list of labels, [] for none"
            )
        return [record.as_text(name, name=column).strip() for name in value]

    def _value(self, record: Record) -> Any:
        """Return the field of the labels; a text that is a list, as pandas writes it to a table, as a list."""
        column = self.own.label
        value = record.field(column, option="label")
        if isinstance(value, str) and (record.of_table or self.own.label_separator):
            names = record.listed(value, name=column)
            return value if names is None else names
        return value

    def notes(self, train: Split) -> list[str]:
        """Return the labels in the order of their ids, with their numbers of examples, and what is odd in train."""
        counts = np.sum(gold_targets(train), axis=0).astype(int).tolist()
        empty = sum(not target.any() for target in gold_targets(train))
        note = label_note(self.labels, counts=counts) + (f"; {empty} texts without a label" if empty else "")
        strays = [] if self.own.labels else stray_notes(self.labels)
        return [note, *strays, *super().notes(train)]

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return micro and macro F1, and the fraction of examples with all labels correct."""
        predicted, gold = self._decisions(split, outputs)
        micro = f1_from_counts(int((predicted & gold).sum()), predicted=int(predicted.sum()), gold=int(gold.sum()))
        f1_by_label = [label.f1 for label in self._by_label(split, outputs).values()]
        return {
            "micro_f1": micro.f1,
            "macro_f1": float(np.mean(f1_by_label)),
            "subset_accuracy": float((predicted == gold).all(1).mean()),
        }

    def prediction_record(self, output: np.ndarray) -> dict[str, Any]:
        """Return the predicted labels and the logits of all labels."""
        scores = {label: float(score) for label, score in zip(self.labels, output, strict=True)}
        return {"prediction": self._named(output > 0), "logits": scores}

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the examples with a wrong decision, sorted by the probability of the worst one, largest first."""
        records = []
        for index, (predicted, gold) in enumerate(zip(*self._decisions(split, outputs), strict=True)):
            if (predicted != gold).any():
                margin = np.abs(outputs[index])[predicted != gold].max()
                records.append(
                    {
                        "index": index,
                        **texts.texts_of(split.examples[index]),
                        "label": self._named(gold),
                        "prediction": self._named(predicted),
                        "probability": float(sigmoid(np.array(float(margin)))),
                    }
                )
        return sorted(records, key=lambda item: -item["probability"])[:count]

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return precision, recall and F1 of each label."""
        return {
            label: {"precision": score.precision, "recall": score.recall, "f1": score.f1}
            for label, score in self._by_label(split, outputs).items()
        }

    def _by_label(self, split: Split, outputs: Outputs) -> dict[str, metrics.PrecisionRecall]:
        columns = zip(*(side.T for side in self._decisions(split, outputs)), strict=True)
        counts = [(int((p & g).sum()), int(p.sum()), int(g.sum())) for p, g in columns]
        return {
            label: f1_from_counts(hits, predicted=predicted, gold=gold)
            for label, (hits, predicted, gold) in zip(self.labels, counts, strict=True)
        }

    def _decisions(self, split: Split, outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
        """Return predicted and gold decisions, bool [examples, C] each."""
        return np.stack(list(outputs)) > 0, np.stack(gold_targets(split)) > 0

    def _named(self, decisions: np.ndarray) -> list[str]:
        return [label for label, decision in zip(self.labels, decisions, strict=True) if decision]


def _is_bit(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)
