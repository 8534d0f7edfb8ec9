"""Own data of every kind: what is predicted for whole texts here, for words and endings in `own_words.py`."""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenization import Tokenizer
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.regression import Regression
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.files import finite_number
from bert_jax.tasks.glue import figures
from bert_jax.tasks.interface import Features, Outputs, Split
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

    def featurise(self, examples: Sequence[TextExample], *, tokenizer: Tokenizer, training: bool) -> Features:
        """Return one instance an example."""
        del training
        return texts.text_features(examples, tokenizer=tokenizer, max_seq_length=self.data.max_seq_length)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write a JSON object a row: index, and what `written` says."""
        records = [{"index": index, **self.written(output)} for index, output in enumerate(outputs)]
        return [texts.write_json_lines(directory / f"own-{split.name}.jsonl", records)]


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


OWN_TASKS: Mapping[str, type[OwnTask]] = {
    task.kind.name: task for task in (OwnClassificationTask, OwnRegressionTask, OwnTagTask, OwnSpanTask, OwnChoiceTask)
}
