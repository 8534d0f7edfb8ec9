"""SWAG: four endings of a beginning, each an instance `[CLS] beginning [SEP] ending [SEP]` (paper section 4.4)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_text
from bert_jax.kinds.base import softmax
from bert_jax.kinds.choice import Choice
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.files import Row, column
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file, split_file
from bert_jax.tasks.tables import read_table

_FILES = {"train": ("train.csv",), "dev": ("val.csv",), "test": ("test.csv",)}
_ENDINGS = ("ending0", "ending1", "ending2", "ending3")


@dataclasses.dataclass(frozen=True)
class ChoiceExample:
    """A beginning, the endings to choose from, and the index of the correct one (None: unlabeled)."""

    text: str
    endings: tuple[str, ...]
    label: Any  # for a reranker the scores of all endings


class ChoiceTask(Task):
    """A task that chooses among endings. Examples may have different numbers of them."""

    kind = Choice
    labels = ()
    selection = "accuracy"

    def featurize(self, examples: Sequence[ChoiceExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance per ending."""
        del training
        first = tokenizer.encode_batch([example.text for example in examples])
        second = iter(tokenizer.encode_batch([ending for example in examples for ending in example.endings]))
        group = self.most_endings(examples)
        missing = (np.zeros(0, np.int32), 0)  # takes no position in a sequence; the kind's loss leaves it out
        instances: list[tuple[np.ndarray, int]] = []
        uncut: list[int] = []
        for example, beginning in zip(examples, first, strict=True):
            endings = [next(second) for _ in example.endings]
            uncut.append(len(beginning) + max(map(len, endings)) + 3)
            instances += [texts.instance(beginning, b, tokenizer=tokenizer, data=self.data) for b in endings]
            instances += [missing] * (group - len(endings))
        labeled = all(example.label is not None for example in examples)
        return Instances(
            ids=[ids for ids, _ in instances],
            first_lengths=np.array([length for _, length in instances], np.int32),
            targets=[example.label for example in examples] if labeled else None,
            group=group,
            uncut=np.array(uncut, np.int64),
        )

    def most_endings(self, examples: Sequence[ChoiceExample]) -> int:
        """Return the largest number of endings of an example of any split."""
        return max(len(example.endings) for example in examples)

    def choices(self, split: Split, outputs: Outputs) -> np.ndarray:
        """Return the index of each example's best ending, among those that it has."""
        pairs = zip(split.examples, outputs, strict=True)
        return np.array([int(np.argmax(output[: len(example.endings)])) for example, output in pairs], np.int64)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": metrics.accuracy(self.choices(split, outputs), labels=texts.label_ids(split))}

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write one column, `pred`, with the index of the chosen ending: the format of SWAG's leaderboard."""
        path = directory / f"{self.name}-{split.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "pred\n" + "".join(f"{choice}\n" for choice in self.choices(split, outputs)))
        return [path]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the wrong choices with the largest probability."""
        records = []
        for index, (example, output) in enumerate(zip(split.examples, outputs, strict=True)):
            probabilities = softmax(output[: len(example.endings)])
            choice = int(np.argmax(probabilities))
            if choice != example.label:
                records.append(
                    {
                        "index": index,
                        "text": example.text,
                        "label": example.endings[example.label],
                        "prediction": example.endings[choice],
                        "probability": float(probabilities[choice]),
                    }
                )
        return sorted(records, key=lambda item: -item["probability"])[:count]


class SwagTask(ChoiceTask):
    """SWAG."""

    def __init__(self, *, data: DataOptions):
        """Set the task up with its options."""
        self.name, self.data = "swag", data

    def read(self, split: str) -> Sequence[ChoiceExample]:
        """Return the rows of a split."""
        path = find_file(self.data.directory, file=split_file(self.data, split), names=_FILES[split], split=split)
        return [_example(row) for row in read_table(path, delimiters=",")]

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set."""
        return ("test",)


def _example(row: Row) -> ChoiceExample:
    """Return the example of a row. `sent2` is the start of the sentence that each ending completes."""
    beginning = column(row, "sent2")
    endings = tuple(f"{beginning} {column(row, name)}".strip() for name in _ENDINGS)
    label = row.fields.get("label", "")
    if label not in ("", "0", "1", "2", "3"):
        raise UserError(f"{row.location}: unknown label {label!r}: write 0, 1, 2 or 3")
    return ChoiceExample(column(row, "sent1"), endings, int(label) if label else None)
