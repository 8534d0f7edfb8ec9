"""The splits of a task in an experiment."""

import dataclasses
from collections.abc import Callable, Sequence

from bert_jax.config.task_options import WINDOWS
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.progress import clock
from bert_jax.tasks.interface import Split, Task


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The train set, the labeled splits to evaluate on (the first selects the best run), the test sets to predict."""

    train: Split
    evals: tuple[Split, ...]
    tests: tuple[Split, ...]

    @property
    def splits(self) -> list[Split]:
        """Return all splits."""
        return [self.train, *self.evals, *self.tests]

    def describe(self) -> str:
        """Return the number of examples of each split."""
        return ", ".join(f"{split.name} {len(split.examples)}" for split in self.splits)

    def notes(self, task: Task) -> list[str]:
        """Return what a user should know before the first run: labels, and the texts that are truncated."""
        notes = [f"{task.name}: {note}" for note in task.notes(self.train)]
        for split in self.splits:
            uncut = split.features.uncut
            over = 0 if uncut is None else int((uncut > task.data.max_seq_length).sum())
            if uncut is None or not over:
                continue
            done = {
                "head": "their end is not read",
                "head_tail": "their middle is not read",
                WINDOWS: f"they are read in windows, {len(split.features.ids)} in all",
            }[task.data.truncation]
            remedy = (
                ""
                if task.data.truncation == WINDOWS
                else ("; raise config.data.max_seq_length, or choose config.data.truncation=head_tail or windows")
            )
            notes.append(
                f"{task.name}: {over} of {len(uncut)} texts of {split.name} ({100 * over / len(uncut):.1f} %) are "
                f"longer than {task.data.max_seq_length} tokens, the longest has {uncut.max()}: {done}{remedy}"
            )
        return notes


def load_task_data(
    task: Task, *, tokenizer: Tokenizer, predict_test: bool, report: Callable[[str], None] = print
) -> TaskData:
    """Read the splits and build their instances; `report` gets a line where that takes long.

    Raises:
      UserError: if files are missing or wrong, or train or an evaluation split has no labels.
    """
    with clock(f"{task.name}: reading the data", report=report):
        train = task.load("train", tokenizer=tokenizer)
        evals = tuple(task.load(name, tokenizer=tokenizer) for name in task.eval_splits())
        names = task.test_splits() if predict_test else ()
        tests = tuple(task.load(name, tokenizer=tokenizer) for name in names)
    check_labeled(task, [train, *evals])
    return TaskData(train, evals, tests)


def check_labeled(task: Task, splits: Sequence[Split]) -> None:
    """Check that all splits have labels.

    Raises:
      UserError: for the first split without labels.
    """
    for split in splits:
        if split.features.targets is None:
            raise missing_labels(task, split.name)


def missing_labels(task: Task, split: str) -> UserError:
    """Return the error about a split that lacks labels."""
    return UserError(
        f"the {split} set of {task.name} has no labels: give a labeled file, or another --config.data.dev_split"
    )
