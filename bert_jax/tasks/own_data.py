"""Own data of every kind: what is predicted for whole texts here, for words and endings in `own_words.py`."""

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
from bert_jax.tasks.glue import figures
from bert_jax.tasks.interface import Instances, Outputs, Split
from bert_jax.tasks.metrics import f1_from_counts
from bert_jax.tasks.own_records import OwnTask, Record, given_labels, read_records
from bert_jax.tasks.own_words import OwnChoiceTask, OwnSpanTask, OwnTagTask
from bert_jax.tasks.texts import TextExample


class OwnTextTask(OwnTask):
    """Sentences or pairs with something to predict for each."""

    def read(self, split: str) -> list[TextExample]:
        """Return the records of a split; test may lack labels."""
        return [self._example(record, split) for record in read_records(self.data, split=split)]

    def _example(self, record: Record, split: str) -> TextExample:
        own = self.own
        text = record.text(own.text, option="text")
        pair = record.text(own.text_pair, option="text_pair") if own.text_pair else None
        return TextExample(text, pair, None if self.is_unlabelled(record, split=split) else self.label(record))

    @abc.abstractmethod
    def label(self, record: Record) -> Any:
        """Return a record's label as the kind's target.

        Raises:
          UserError: if it has none, or a wrong one.
        """

    @abc.abstractmethod
    def written(self, output: np.ndarray) -> dict[str, Any]:
        """Return what a line of predictions says of an example."""

    def featurise(self, examples: Sequence[TextExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance an example."""
        del training
        return texts.text_features(examples, tokenizer=tokenizer, max_seq_length=self.data.max_seq_length)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write a JSON object a row: index, and what `written` says."""
        records = [{"index": index, **self.written(output)} for index, output in enumerate(outputs)]
        path = directory / f"own-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, records)
        return [path]


class OwnClassificationTask(OwnTextTask):
    """Classify sentences or pairs."""

    kind = Classification
    selection = "accuracy"

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels that the config gives, else those of train, sorted."""
        records = read_records(self.data, split="train")
        return given_labels(self.own) or tuple(sorted({r.text(self.own.label, option="label") for r in records}))

    def label(self, record: Record) -> int:
        """Return the number of the label."""
        return record.label_number(record.text(self.own.label, option="label"), labels=self.labels)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return accuracy, macro F1 and Matthews' correlation."""
        guesses, labels = texts.predicted_ids(outputs), texts.label_ids(split)
        return figures(guesses, labels=labels, names=("accuracy", "mcc")) | {
            "macro_f1": metrics.macro_f1(guesses, labels=labels)
        }

    def written(self, output: np.ndarray) -> dict[str, Any]:
        """Return the prediction, and the scores of all labels."""
        scores = {label: float(score) for label, score in zip(self.labels, output, strict=True)}
        return {"prediction": self.labels[int(np.argmax(output))], "logits": scores}

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst mistakes."""
        return texts.classification_mistakes(split, outputs, labels=self.labels, count=count)

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the confusion table."""
        return {"confusion": texts.confusion_table(split, outputs, labels=self.labels)}


class OwnRegressionTask(OwnTextTask):
    """Rate sentences or pairs by a number."""

    kind = Regression
    labels = ()
    selection = "spearman"

    def label(self, record: Record) -> float:
        """Return the number."""
        written = record.field(self.own.label, option="label")
        return finite_number(written, place=record.place, name=self.own.label)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return both correlations."""
        return figures(texts.numbers(outputs), labels=texts.numbers_there(split), names=("spearman", "pearson"))

    def written(self, output: np.ndarray) -> dict[str, Any]:
        """Return the prediction."""
        return {"prediction": float(output[0])}

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst mistakes."""
        return texts.regression_mistakes(split, outputs, count=count)


class OwnMultiLabelTask(OwnTextTask):
    """Give sentences or pairs any number of labels: a list of them; in a table, names separated by commas."""

    kind = MultiLabel
    selection = "micro_f1"

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels that the config gives, else those of train, sorted."""
        records = read_records(self.data, split="train")
        labels = given_labels(self.own) or tuple(sorted({name for record in records for name in self._names(record)}))
        if not labels:
            raise UserError(f"no record of the train set has a label in column {self.own.label!r}: check its file")
        return labels

    def label(self, record: Record) -> np.ndarray:
        """Return float32 [C], 1 for each label of the record."""
        target = np.zeros(len(self.labels), np.float32)
        target[[record.label_number(name, labels=self.labels) for name in self._names(record)]] = 1
        return target

    def _names(self, record: Record) -> list[str]:
        column = self.own.label
        value = record.field(column, option="label")
        if record.of_table:
            value = [name.strip() for name in value.split(",") if name.strip()]
        if not isinstance(value, list):
            raise UserError(f"{record.place}: column {column!r} is {value!r}: write a list of labels, [] for none")
        return [record.as_text(name, name=column) for name in value]

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return micro and macro F1, and the fraction of examples with all labels right."""
        predicted, gold = self._decisions(split, outputs)
        micro = f1_from_counts(int((predicted & gold).sum()), predicted=int(predicted.sum()), gold=int(gold.sum()))
        each = [label.f1 for label in self._by_label(split, outputs).values()]
        return {
            "micro_f1": micro.f1,
            "macro_f1": float(np.mean(each)),
            "subset_accuracy": float((predicted == gold).all(1).mean()),
        }

    def written(self, output: np.ndarray) -> dict[str, Any]:
        """Return the predicted labels, and the scores of all."""
        scores = {label: float(score) for label, score in zip(self.labels, output, strict=True)}
        return {"prediction": self._named(output > 0), "logits": scores}

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the examples with a wrong label, those first whose wrong decision has the largest probability."""
        found = []
        for index, (predicted, gold) in enumerate(zip(*self._decisions(split, outputs), strict=True)):
            if (predicted != gold).any():
                certainty = float(np.abs(outputs[index])[predicted != gold].max())
                words = {"label": self._named(gold), "prediction": self._named(predicted)}
                share = float(sigmoid(np.array(certainty)))
                found.append({"index": index, **texts.texts_of(split.examples[index]), **words, "probability": share})
        return sorted(found, key=lambda item: -item["probability"])[:count]

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
        """Return bool [examples, C] twice: what is predicted, and what is right."""
        return np.stack(list(outputs)) > 0, np.stack(split.features.targets or []) > 0

    def _named(self, decisions: np.ndarray) -> list[str]:
        return [label for label, there in zip(self.labels, decisions, strict=True) if there]


OWN_TASKS: Mapping[str, type[OwnTask]] = {
    task.kind.name: task
    for task in (OwnClassificationTask, OwnRegressionTask, OwnTagTask, OwnSpanTask, OwnChoiceTask, OwnMultiLabelTask)
}
