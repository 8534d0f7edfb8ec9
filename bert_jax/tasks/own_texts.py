"""What tasks on custom data with one prediction per text or pair share: reading, instances and the predictions file."""

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenization import Tokenizer
from bert_jax.files import write_json_lines
from bert_jax.tasks import texts
from bert_jax.tasks.interface import Instances, Outputs, Split
from bert_jax.tasks.own_records import OwnTask, Record, read_records
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
        return texts.text_features(examples, tokenizer=tokenizer, data=self.data)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write one JSON object per example: its index and its `prediction_record`."""
        records = [{"index": index, **self.prediction_record(output)} for index, output in enumerate(outputs)]
        path = directory / f"own-{split.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, records)
        return [path]
