"""Define what a task is: it reads its files, turns them into instances, and scores what a head gave for them.

A new task is one small file: a subclass of `Task`, and a line in `registry.py`. An *instance* is one `[CLS] A [SEP] B
[SEP]`; an *example* is what is scored: one instance, or `group` of them (the choices of SWAG). A task never sees a
model: it gets a float32 *output* per example, as its kind in `bert_jax/kinds` says, without the axes of batch and row.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind

Outputs = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Instances:
    """Hold the instances of a split.

    `ids` gives each instance's tokens (int32 [T], specials included), `first_lengths` the length of its `[CLS] A
    [SEP]`. `targets` has an entry per example, as the task's kind takes it: a number, two token positions of the
    instance (0, 0: no answer), a tag per token (-1: not scored), C zeros and ones. None: unlabelled.
    """

    ids: list[np.ndarray]
    first_lengths: np.ndarray
    targets: list[Any] | None
    group: int = 1
    places: Sequence[Any] = ()  # what the task needs to read outputs back, one an instance

    @property
    def num_examples(self) -> int:
        """Return the number of things that are scored."""
        return len(self.ids) // self.group

    @functools.cached_property  # every batch asks
    def instance_lengths(self) -> np.ndarray:
        """Return int64 [examples, group]: the tokens of each instance."""
        return np.array([len(ids) for ids in self.ids], np.int64).reshape(-1, self.group)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Return int64 [examples]: the tokens of each example, all its instances together."""
        return self.instance_lengths.sum(1)


@dataclasses.dataclass(frozen=True)
class Split:
    """Hold a split as read, and its instances."""

    name: str
    examples: Sequence[Any]
    features: Instances


class Task(abc.ABC):
    """Be one task. `selection` names the figure of `score` by which dev chooses, larger is better."""

    name: str
    kind: type[OutputKind]
    labels: tuple[str, ...]
    selection: str
    data: DataOptions

    @abc.abstractmethod
    def read(self, split: str) -> Sequence[Any]:
        """Return the examples of "train", "dev" or "test" (or what `eval_splits` and `test_splits` name).

        Raises:
          UserError: if files are missing or wrong, with file and line.
        """

    @abc.abstractmethod
    def featurise(self, examples: Sequence[Any], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return the instances; `training` may leave out what cannot be trained on."""

    @abc.abstractmethod
    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return the official figures of a labeled split."""

    @abc.abstractmethod
    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write the predictions in the official form, and return the files."""

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return up to `count` wrong predictions, the most confident first, as JSON objects."""
        del split, outputs, count
        return []

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return what else is worth seeing, by name: a confusion table, scores of each type."""
        del split, outputs
        return {}

    def calibrate(self, split: Split, outputs: Outputs) -> None:
        """Choose on dev what predictions depend on (SQuAD 2.0's threshold); nothing by default."""
        del split, outputs

    def eval_splits(self) -> tuple[str, ...]:
        """Return the labeled splits to report on; the first one selects."""
        return (self.data.dev_split,)

    def test_splits(self) -> tuple[str, ...]:
        """Return the splits to predict, as far as their files are there."""
        return ()

    def group_of(self, example: Any, index: int) -> Any:
        """Return what must not be divided between train and dev: an article, a document, by default the row."""
        del example
        return index

    def load(self, split: str, *, tokenizer: Tokenizer) -> Split:
        """Return a split ready for use: read, divided, limited (a test set never), featurised.

        Raises:
          UserError: as `read` does, and if nothing is left.
        """
        examples = self._divided(split)
        limit = self.data.max_train_examples if split == "train" else 0
        if split.startswith("dev"):  # a test set is submitted whole, one of its rows a line
            limit = self.data.max_eval_examples
        if 0 < limit < len(examples):
            chosen = np.random.default_rng(self.data.seed).choice(len(examples), size=limit, replace=False)
            examples = [examples[i] for i in np.sort(chosen)]
        if not examples:
            raise UserError(f"the {split} set of {self.name} is empty: check its file, or config.data.dev_fraction")
        features = self.featurise(examples, tokenizer=tokenizer, training=split == "train")
        if not features.ids:
            raise UserError(f"nothing of the {split} set of {self.name} can be used: check its file")
        return Split(split, examples, features)

    def _divided(self, split: str) -> Sequence[Any]:
        """Return the examples of a split, `dev_fraction` of train being dev."""
        fraction = self.data.dev_fraction
        if fraction == 0 or split not in ("train", "dev"):
            return self.read(split)
        examples = self.read("train")
        groups = [self.group_of(example, index) for index, example in enumerate(examples)]
        names = list(dict.fromkeys(groups))
        held = round(len(names) * fraction)
        order = np.random.default_rng([self.data.seed, 1]).permutation(len(names))
        dev = {names[i] for i in order[:held]}
        return [e for e, group in zip(examples, groups, strict=True) if (group in dev) == (split == "dev")]


def find_file(directory: str, *, given: str, names: Sequence[str]) -> Path:
    """Return the file that the user gave, or the first of `names` that is there.

    Raises:
      UserError: if there is none; the line names the folder and the file that is missing.
    """
    if given:
        near = Path(directory) / given
        return near if near.exists() or not Path(given).exists() else Path(given)
    if not directory:
        raise UserError("config.data.directory is empty: give --data_dir=DIR with the task's files")
    for name in names:
        if (Path(directory) / name).is_file():
            return Path(directory) / name
    raise UserError(f"{directory}: holds no {' or '.join(names)}: give the folder with --data_dir=DIR")
