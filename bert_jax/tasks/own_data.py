"""Tasks on custom data with one prediction per text. `own_words.py` has those that predict words or endings."""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json_lines
from bert_jax.kinds.base import sigmoid
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.multilabel import MultiLabel
from bert_jax.kinds.regression import Regression
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.files import finite_number
from bert_jax.tasks.glue import named_metrics
from bert_jax.tasks.interface import Instances, Outputs, Split
from bert_jax.tasks.metrics import f1_from_counts
from bert_jax.tasks.own_records import OwnTask, Record, configured_labels, read_records
from bert_jax.tasks.own_words import OwnChoiceTask, OwnSpanTask, OwnTagTask
from bert_jax.tasks.texts import TextExample


class OwnTextTask(OwnTask):
    """A task with one prediction per sentence or sentence pair."""

    def read(self, split: str) -> list[TextExample]:
        """Return the examples of a split. Only test may lack labels."""
        return [self._example(record, split) for record in read_records(self.data, split=split)]

    def _example(self, record: Record, split: str) -> TextExample:
        own = self.own
        text = record.text(own.text, option="text")
        pair = record.text(own.text_pair, option="text_pair") if own.text_pair else None
        return TextExample(text, pair, None if self.is_unlabeled(record, split=split) else self.label(record))

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
        return texts.text_features(examples, tokenizer=tokenizer, max_seq_length=self.data.max_seq_length)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write one JSON object per example: its index and its `prediction_record`."""
        records = [{"index": index, **self.prediction_record(output)} for index, output in enumerate(outputs)]
        path = directory / f"own-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, records)
        return [path]


class OwnClassificationTask(OwnTextTask):
    """Single-label classification of sentences or sentence pairs."""

    kind = Classification
    selection = "accuracy"

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels in the config, or those of train, sorted."""
        records = read_records(self.data, split="train")
        return configured_labels(self.own) or tuple(sorted({r.text(self.own.label, option="label") for r in records}))

    def label(self, record: Record) -> int:
        """Return the label id."""
        return record.label_id(record.text(self.own.label, option="label"), labels=self.labels)

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

    def label(self, record: Record) -> float:
        """Return the number."""
        value = record.field(self.own.label, option="label")
        return finite_number(value, location=record.location, name=self.own.label)

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


class OwnMultiLabelTask(OwnTextTask):
    """Multi-label classification of sentences or pairs. Labels are a list; in a table, names separated by commas."""

    kind = MultiLabel
    selection = "micro_f1"

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels in the config, or those of train, sorted."""
        records = read_records(self.data, split="train")
        labels = configured_labels(self.own) or tuple(
            sorted({name for record in records for name in self._names(record)})
        )
        if not labels:
            raise UserError(f"no record of the train set has a label in column {self.own.label!r}: check its file")
        return labels

    def label(self, record: Record) -> np.ndarray:
        """Return a float32 vector [C], 1 for each label of the record."""
        target = np.zeros(len(self.labels), np.float32)
        target[[record.label_id(name, labels=self.labels) for name in self._names(record)]] = 1
        return target

    def _names(self, record: Record) -> list[str]:
        column = self.own.label
        value = record.field(column, option="label")
        if record.of_table:
            value = [name.strip() for name in value.split(",") if name.strip()]
        if not isinstance(value, list):
            raise UserError(f"{record.location}: column {column!r} is {value!r}: write a list of labels, [] for none")
        return [record.as_text(name, name=column) for name in value]

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
        return np.stack(list(outputs)) > 0, np.stack(split.features.targets or []) > 0

    def _named(self, decisions: np.ndarray) -> list[str]:
        return [label for label, decision in zip(self.labels, decisions, strict=True) if decision]


OWN_TASKS: Mapping[str, type[OwnTask]] = {
    task.kind.name: task
    for task in (OwnClassificationTask, OwnRegressionTask, OwnTagTask, OwnSpanTask, OwnChoiceTask, OwnMultiLabelTask)
}
