"""Tasks on custom data with one prediction per text. `own_words.py` has those that predict words or endings."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_jax.errors import UserError
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.regression import Regression
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.files import finite_number
from bert_jax.tasks.glue import named_metrics
from bert_jax.tasks.interface import Outputs, Split
from bert_jax.tasks.own_labels import (
    check_label_types,
    configured_labels,
    label_note,
    sorted_labels,
    stray_notes,
    weight_list,
)
from bert_jax.tasks.own_multilabel import OwnMultiLabelTask
from bert_jax.tasks.own_records import OwnTask, Record, read_records
from bert_jax.tasks.own_tags import OwnTagTask
from bert_jax.tasks.own_texts import OwnTextTask
from bert_jax.tasks.own_words import OwnChoiceTask, OwnSpanTask


class OwnClassificationTask(OwnTextTask):
    """Single-label classification of sentences or sentence pairs."""

    kind = Classification
    selection = "accuracy"
    selections = ("accuracy", "macro_f1", "mcc")

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels in the config, or those of train, sorted.

        Raises:
          UserError: if there is only one, or a truth value or number among labels of another kind.
        """
        labels = configured_labels(self.own) or self._labels_of_train()
        if len(labels) == 1:
            raise UserError(
                f"the only label in column {self.own.label!r} of train is {labels[0]!r}: there is nothing to learn; "
                "name the column of the labels with --config.own.label, or add records with another label"
            )
        return labels

    def _labels_of_train(self) -> tuple[str, ...]:
        column = self.own.label
        distinct: dict[tuple[type, str], tuple[str, Any]] = {}
        for record in read_records(self.data, split="train"):
            name = self._name(record)
            distinct.setdefault((type(record.fields[column]), name), (record.location, record.fields[column]))
        check_label_types(distinct.values(), column=column)
        return sorted_labels(name for _, name in distinct)

    def label(self, record: Record) -> int:
        """Return the label id."""
        return record.label_id(self._name(record), labels=self.labels)

    def _name(self, record: Record) -> str:
        column = self.own.label
        if isinstance(record.fields.get(column), list):
            raise UserError(
                f"{record.location}: column {column!r} holds a list: for several labels per text type "
                "--config=configs/finetune_own.py:multilabel"
            )
        value = record.field(column, option="label")
        name = str(value) if isinstance(value, bool) else record.as_text(value, name=column).strip()
        if not name:
            raise UserError(f"{record.location}: column {column!r} is empty: give the record a label")
        return name

    def notes(self, train: Split) -> list[str]:
        """Return the labels in the order of their ids, with their numbers of examples, and what is odd in train."""
        counts = self._counts(train).tolist()
        strays = [] if self.own.labels else stray_notes(self.labels)
        return [label_note(self.labels, counts=counts), *strays, *super().notes(train)]

    def _counts(self, train: Split) -> np.ndarray:
        return np.bincount(texts.label_ids(train), minlength=len(self.labels))

    def class_weights(self, train: Split) -> tuple[float, ...]:
        """Return the weights that the config names. `balanced` is scikit-learn's: n / (C * count of the label)."""
        option = self.own.class_weights
        if not option:
            return ()
        if option == "balanced":
            counts = self._counts(train)
            return tuple((counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist())
        weights = weight_list(option)
        if len(weights) != len(self.labels):
            raise UserError(
                f"config.own.class_weights has {len(weights)} weights, but there are {len(self.labels)} labels "
                f"({', '.join(self.labels)}): give one per label, or balanced"
            )
        return weights

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return accuracy, macro F1 and Matthews' correlation."""
        predictions, labels = texts.predicted_ids(outputs), texts.label_ids(split)
        return named_metrics(predictions, labels=labels, names=("accuracy", "mcc")) | {
            "macro_f1": metrics.macro_f1(predictions, labels=labels)
        }

    def prediction_record(self, output: np.ndarray) -> dict[str, Any]:
        """Return the predicted label and the logits of all labels."""
        scores = {label: float(score) for label, score in zip(self.labels, output, strict=True)}
        return {"prediction": self.labels[int(np.argmax(output))], "logits": scores}

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst errors."""
        return texts.classification_mistakes(split, outputs, labels=self.labels, count=count)

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the confusion matrix."""
        return {"confusion": texts.confusion_table(split, outputs, labels=self.labels)}


class OwnRegressionTask(OwnTextTask):
    """Regression: a number for each sentence or sentence pair."""

    kind = Regression
    labels = ()
    selection = "spearman"
    selections = ("spearman", "pearson")

    def label(self, record: Record) -> float:
        """Return the number."""
        value = record.field(self.own.label, option="label")
        return finite_number(value, location=record.location, name=self.own.label)

    def notes(self, train: Split) -> list[str]:
        """Return the range of the numbers, and what is odd in train."""
        numbers = texts.label_numbers(train)
        low, high, column = numbers.min(), numbers.max(), self.own.label
        note = f"numbers from {low:g} to {high:g} in train, mean {numbers.mean():g}"
        if low == high:
            note = (
                f"column {column!r} is {low:g} in all {len(numbers)} examples of train: there is nothing to learn; "
                "name the column of the numbers with --config.own.label"
            )
        return [note, *super().notes(train)]

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return Spearman's and Pearson's correlation."""
        predictions, labels = texts.predicted_numbers(outputs), texts.label_numbers(split)
        return named_metrics(predictions, labels=labels, names=("spearman", "pearson"))

    def prediction_record(self, output: np.ndarray) -> dict[str, Any]:
        """Return the predicted number."""
        return {"prediction": float(output[0])}

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst errors."""
        return texts.regression_mistakes(split, outputs, count=count)


OWN_TASKS: Mapping[str, type[OwnTask]] = {
    task.kind.name: task
    for task in (OwnClassificationTask, OwnRegressionTask, OwnTagTask, OwnSpanTask, OwnChoiceTask, OwnMultiLabelTask)
}
