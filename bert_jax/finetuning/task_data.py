"""The splits of a task as one experiment uses them."""

import dataclasses
from collections.abc import Sequence

from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.interface import Split, Task


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The train set, the labeled splits that are reported on (the first one selects), and the test sets to predict."""

    train: Split
    evals: tuple[Split, ...]
    tests: tuple[Split, ...]

    @property
    def splits(self) -> list[Split]:
        """Return all of them."""
        return [self.train, *self.evals, *self.tests]

    def describe(self) -> str:
        """Return the number of examples of each split."""
        return ", ".join(f"{split.name} {len(split.examples)}" for split in self.splits)


def load_task_data(task: Task, *, tokenizer: Tokenizer, predict_test: bool) -> TaskData:
    """Read and featurize the splits.

    Raises:
      UserError: if files are missing or wrong, or a split that must have labels has none.
    """
    train = task.load("train", tokenizer=tokenizer)
    evals = tuple(task.load(name, tokenizer=tokenizer) for name in task.eval_splits())
    names = task.test_splits() if predict_test else ()
    tests = tuple(task.load(name, tokenizer=tokenizer) for name in names)
    check_labelled(task, [train, *evals])
    return TaskData(train, evals, tests)


def check_labelled(task: Task, splits: Sequence[Split]) -> None:
    """Check that every split has labels.

    Raises:
      UserError: for the first that has none.
    """
    for split in splits:
        if split.features.targets is None:
            raise no_labels(task, split.name)


def no_labels(task: Task, split: str) -> UserError:
    """Return the complaint about a split that must have labels and has none."""
    return UserError(
        f"the {split} set of {task.name} has no labels: name a labeled file, or another --config.data.dev_split"
    )
