"""Multi-label classification of custom data: labels as a list, as text with separators, or as columns of 0 and 1."""

import functools
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.kinds.base import sigmoid
from bert_jax.kinds.multilabel import MultiLabel
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.files import written
from bert_jax.tasks.interface import Outputs, Split, gold_targets
from bert_jax.tasks.metrics import f1_from_counts
from bert_jax.tasks.own_labels import configured_labels, is_truth, label_note, listed, sorted_labels
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
        columns = listed(self.own.label)
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
        records = list(read_records(self.data, split="train"))
        return self._vector_width(records) == len(self.labels) > 0

    def _vector_width(self, records: list[Record]) -> int:
        """Return the length of the lists if all are vectors of 0 and 1, else 0. A list of names repeats no name."""
        values = [record.fields.get(self.own.label) for record in records]
        if not all(isinstance(value, list) and value and all(_is_bit(item) for item in value) for value in values):
            return 0
        sizes = {len(value) for value in values if isinstance(value, list)}
        repeats = any(len(set(value)) < len(value) for value in values if isinstance(value, list))
        return sizes.pop() if len(sizes) == 1 and repeats else 0

    def is_unlabeled(self, record: Record, *, split: str) -> bool:
        """Return whether a record of the test set lacks its labels. In a table an empty field means no label."""
        return split == "test" and all(record.fields.get(name) is None for name in listed(self.own.label))

    def label(self, record: Record) -> np.ndarray:
        """Return a float32 vector [C], 1 for each label of the record."""
        columns = listed(self.own.label)
        if len(columns) > 1:
            values = [record.field(name, option="label") for name in columns]
            bits = [is_truth(v, record=record, name=n) for n, v in zip(columns, values, strict=True)]
            return np.array(bits, np.float32)
        target = np.zeros(len(self.labels), np.float32)
        value = record.field(self.own.label, option="label")
        if self._vectors:
            if not isinstance(value, list) or len(value) != len(target) or not all(_is_bit(item) for item in value):
                raise UserError(
                    f"{record.location}: column {self.own.label!r} is {written(value)}: write a list of "
                    f"{len(target)} numbers, 0 or 1, as in the other records"
                )
            return np.array(value, np.float32)
        target[[record.label_id(name, labels=self.labels) for name in self._names(record)]] = 1
        return target

    def _names(self, record: Record) -> list[str]:
        column, separator = self.own.label, self.own.label_separator
        value = record.field(column, option="label")
        if isinstance(value, str) and (record.of_table or separator):
            value = self._parts(value, record=record)
        if not isinstance(value, list):
            raise UserError(
                f"{record.location}: column {column!r} is {written(value)}: write a list of labels, [] for none"
            )
        return [record.as_text(name, name=column).strip() for name in value]

    def _parts(self, value: str, *, record: Record) -> list[Any]:
        """Return the labels in a text: separated, or a list as pandas writes it to a table."""
        names = record.listed(value, name=self.own.label)
        if names is not None:
            return names
        return [part.strip() for part in value.split(self.own.label_separator or ",") if part.strip()]

    def notes(self, train: Split) -> list[str]:
        """Return the labels in the order of their ids, with their numbers of examples."""
        counts = np.sum(gold_targets(train), axis=0).astype(int).tolist()
        empty = sum(not target.any() for target in gold_targets(train))
        return [label_note(self.labels, counts=counts) + (f"; {empty} texts without a label" if empty else "")]

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
