"""The interface of a task: it reads its files, turns them into instances, and scores the outputs of a model's head.

A new task is one small file with a subclass of `Task`, and a line in `registry.py`.

* An *instance* is one `[CLS] A [SEP] B [SEP]`.
* An *example* is what is scored: one instance, or `group` of them (the endings of SWAG).
* An *output* is what the head computes for an example: float32, with the shape that the task's kind (`bert_jax/kinds`)
  gives it, without the axes of batch and slot. A task never sees the model.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import HOLD_OUT, DataOptions
from bert_jax.data.opening import COMPRESSED
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind

Outputs = Sequence[np.ndarray]
_MOST_LISTED = 8  # files in a message


@dataclasses.dataclass(frozen=True)
class Instances:
    """The instances of a split.

    `ids` holds each instance's tokens (int32 [T], with special tokens), `first_lengths` the length of its `[CLS] A
    [SEP]`. `targets` has one entry per example, in the form of the task's kind: a label id, a number, two token
    positions of the instance (0, 0: no answer), a label id per token (-1: not scored), or C zeros and ones. It is None
    if the split is unlabeled.
    """

    ids: list[np.ndarray]
    first_lengths: np.ndarray
    targets: list[Any] | None
    group: int = 1
    alignments: Sequence[Any] = ()  # per instance: how its tokens map to the text, for tasks that predict tokens
    owners: np.ndarray | None = None  # per instance: the index of its text, if a text may have several (windows)
    uncut: np.ndarray | None = None  # int64 per text: its tokens before truncation; None: nothing is truncated

    @property
    def num_examples(self) -> int:
        """Return the number of examples."""
        return len(self.ids) // self.group

    @functools.cached_property  # read for every batch
    def instance_lengths(self) -> np.ndarray:
        """Return the number of tokens of each instance, int64 [examples, group]."""
        return np.array([len(ids) for ids in self.ids], np.int64).reshape(-1, self.group)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each example, summed over its instances, int64 [examples]."""
        return self.instance_lengths.sum(1)


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split and their instances."""

    name: str
    examples: Sequence[Any]
    features: Instances


class Task(abc.ABC):
    """A task. `selection` names the metric of `score` that selects the best run on dev; larger is better."""

    name: str
    kind: type[OutputKind]
    labels: tuple[str, ...]
    selection: str
    selections: tuple[str, ...] = ()  # the metrics that may replace `selection` (config.data.selection)
    data: DataOptions

    def make_kind(self, *, group: int, class_weights: tuple[float, ...] = ()) -> OutputKind:
        """Return the kind with the task's sizes, for `group` instances per example."""
        return self.kind(num_labels=len(self.labels), group=group, class_weights=class_weights)

    @abc.abstractmethod
    def read(self, split: str) -> Sequence[Any]:
        """Return the examples of "train", "dev", "test" or another split in `eval_splits` and `test_splits`.

        Raises:
          UserError: if files are missing or wrong, with file and line.
        """

    @abc.abstractmethod
    def featurize(self, examples: Sequence[Any], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return the instances. With `training`, examples that cannot be trained on may be left out."""

    @abc.abstractmethod
    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return the official metrics of a labeled split."""

    @abc.abstractmethod
    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write the predictions in the official format, and return the paths of the files."""

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return up to `count` wrong predictions as JSON objects, the most confident first."""
        del split, outputs, count
        return []

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return further results by name, such as a confusion matrix or the scores of each entity type."""
        del split, outputs
        return {}

    def notes(self, train: Split) -> list[str]:
        """Return what a user should know about the train set before the first run: the order of labels, for example."""
        del train
        return []

    def class_weights(self, train: Split) -> tuple[float, ...]:
        """Return the weight of each label in the loss; empty: all weigh the same."""
        del train
        return ()

    def model_record(self) -> dict[str, Any]:
        """Return what the metadata of the model's checkpoint holds of the task, beyond its name and labels."""
        return {}

    def calibrate(self, split: Split, outputs: Outputs) -> None:
        """Choose on dev what predictions depend on (SQuAD 2.0's threshold). The default does nothing."""
        del split, outputs

    def eval_splits(self) -> tuple[str, ...]:
        """Return the labeled splits to report on. The first one selects the best run."""
        return (self.data.dev_split,)

    def test_splits(self) -> tuple[str, ...]:
        """Return the test sets that `--predict_test` predicts."""
        return ()

    def group_of(self, example: Any, index: int) -> Any:
        """Return the unit that train and dev must not share: an article, a document, or by default the example."""
        del example
        return index

    def load(self, split: str, *, tokenizer: Tokenizer) -> Split:
        """Read a split, hold out dev, sample at most the configured number of examples, and build the instances.

        A test set is never sampled.

        Raises:
          UserError: as `read` does, and if no example or instance is left.
        """
        examples = self._with_held_out_dev(split)
        limit = self.data.max_train_examples if split == "train" else 0
        if split.startswith("dev"):  # not test: a submission must contain all of its rows
            limit = self.data.max_eval_examples
        if 0 < limit < len(examples):
            examples = self.sample(examples, limit=limit)
        if not examples:
            raise UserError(f"the {split} set of {self.name} is empty: check its file, or config.data.dev_fraction")
        features = self.featurize(examples, tokenizer=tokenizer, training=split == "train")
        if not features.ids:
            raise UserError(f"the {split} set of {self.name} has no usable example: check its file")
        return Split(split, examples, features)

    def sample(self, examples: Sequence[Any], *, limit: int) -> Sequence[Any]:
        """Return at most `limit` examples, sampled with the config's seed, in their order."""
        chosen = np.random.default_rng(self.data.seed).choice(len(examples), size=limit, replace=False)
        return [examples[i] for i in np.sort(chosen)]

    def _with_held_out_dev(self, split: str) -> Sequence[Any]:
        """Return the examples of a split. If `dev_fraction` is set, dev is that fraction of train."""
        fraction = self.data.dev_fraction
        if fraction == 0 or split not in ("train", "dev"):
            return self.read(split)
        examples = self.read("train")
        groups = [self.group_of(example, index) for index, example in enumerate(examples)]
        names = list(dict.fromkeys(groups))
        dev_size = round(len(names) * fraction)
        order = np.random.default_rng([self.data.seed, 1]).permutation(len(names))
        dev = {names[i] for i in order[:dev_size]}
        return [e for e, group in zip(examples, groups, strict=True) if (group in dev) == (split == "dev")]


def gold_targets(split: Split) -> list[Any]:
    """Return the target of each text of a labeled split, also if a text has several windows."""
    targets, owners = split.features.targets, split.features.owners
    assert targets is not None
    return targets if owners is None else [targets[i] for i in np.unique(owners, return_index=True)[1]]


def merged(features: Instances, outputs: Outputs) -> Outputs:
    """Return one output per text: the mean over its windows, if a text may have several."""
    if features.owners is None:
        return outputs
    parts: dict[int, list[np.ndarray]] = {}
    for owner, output in zip(features.owners.tolist(), outputs, strict=True):
        parts.setdefault(owner, []).append(output)
    return [np.mean(np.stack(windows), axis=0) for windows in parts.values()]


def split_file(data: DataOptions, split: str) -> str:
    """Return the file that the config names for a split, or "" if it names none."""
    return {"train": data.train_file, "dev": data.dev_file, "test": data.test_file}.get(split, "")


def find_file(
    directory: str, *, file: str, names: Sequence[str], split: str = "", shown: str = "", advice: str = ""
) -> Path:
    """Return `file` in `directory` or anywhere; without `file`, the first of the official `names` that exists.

    Where none does, a compressed one is taken. Where `directory` is itself a file, that is the training set, and the
    others may be next to it.

    `shown` describes `names` in the message if there are many; `advice` is what to try first.

    Raises:
      UserError: if none of `names` exists; the message names the folder, the missing file and what else is possible
        for `split`.
    """
    if file:
        path = Path(directory) / file
        return path if path.exists() or not Path(file).exists() else Path(file)
    if not directory:
        raise UserError("config.data.directory is empty: give the folder of the task's files with --data_dir=DIR")
    folder = Path(directory)
    if is_file := folder.is_file():
        if split == "train":
            return folder
        folder = folder.parent
    for suffix in ("", *COMPRESSED):
        for name in names:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    remedies = [advice, "give the folder of the task's files with --data_dir=DIR"]
    if split in ("train", "dev", "test"):
        remedies.append(f"the file's name with --config.data.{split}_file=FILE")
    if split.startswith("dev"):  # with one file, the likely remedy
        remedies.insert(0 if is_file else len(remedies), f"hold out part of train with {HOLD_OUT}")
    others = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    listed = ", ".join(others[:_MOST_LISTED]) + (", ..." if len(others) > _MOST_LISTED else "")
    raise UserError(
        f"{folder}: contains no {shown or ' or '.join(names)}"
        + (f"; it has {listed}" if listed else "")
        + f": {', or '.join(filter(None, remedies))}"
    )
