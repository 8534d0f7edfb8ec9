"""GLUE, from the official TSV files or TFDS, with the official metric of each task.

Quirks of the files:
* Quotes are ordinary characters.
* CoLA has no header line.
* MRPC comes as Microsoft's two files (byte order mark, CRLF). A list of ids from GLUE splits train into train and dev.
* QQP has malformed rows, which GLUE's own loader skips.
* MNLI has two dev and two test sets.
* AX has only a test set. The MNLI model predicts it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_text
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.regression import Regression
from bert_jax.tasks import metrics, texts
from bert_jax.tasks.files import Row, column, finite_number, read_text, read_tsv
from bert_jax.tasks.glue_tfds import TFDS_PREFIX, has_tfds, read_tfds
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file, split_file
from bert_jax.tasks.texts import TextExample


@dataclasses.dataclass(frozen=True)
class GlueSpec:
    """One GLUE task: its folder, columns, labels, metrics, splits and file names."""

    directory: str
    text: str
    text_pair: str
    label: str
    labels: tuple[str, ...]  # names, in the order of TFDS's ids; empty for regression
    values: tuple[str, ...] = ()  # the labels as written in the files, if they are not the names
    metrics: tuple[str, ...] = ("accuracy",)  # the first is the paper's (Table 1) and selects the best run
    dev: tuple[str, ...] = ("dev",)
    test: tuple[str, ...] = ("test",)
    submission: tuple[str, ...] = ()  # the file name that the server expects for each test split
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")

TASKS: Mapping[str, GlueSpec] = {
    "cola": GlueSpec(
        "CoLA", "sentence", "", "label", ("unacceptable", "acceptable"), ("0", "1"), ("mcc", "accuracy"),
        submission=("CoLA",),
    ),
    "sst2": GlueSpec(
        "SST-2", "sentence", "", "label", ("negative", "positive"), ("0", "1"), submission=("SST-2",)
    ),
    "mrpc": GlueSpec(
        "MRPC", "#1 String", "#2 String", "Quality", ("not_equivalent", "equivalent"), ("0", "1"), ("f1", "accuracy"),
        submission=("MRPC",),
        files={
            "train": ("train.tsv", "msr_paraphrase_train.txt"),
            "test": ("test.tsv", "msr_paraphrase_test.txt"),
        },
    ),
    "stsb": GlueSpec(
        "STS-B", "sentence1", "sentence2", "score", (), metrics=("spearman", "pearson"), submission=("STS-B",)
    ),
    "qqp": GlueSpec(
        "QQP", "question1", "question2", "is_duplicate", ("not_duplicate", "duplicate"), ("0", "1"), ("f1", "accuracy"),
        submission=("QQP",),
    ),
    "mnli": GlueSpec(
        "MNLI", "sentence1", "sentence2", "gold_label", _NLI,
        dev=("dev_matched", "dev_mismatched"), test=("test_matched", "test_mismatched"),
        submission=("MNLI-m", "MNLI-mm"),
    ),
    "qnli": GlueSpec("QNLI", "question", "sentence", "label", _ENTAILMENT, submission=("QNLI",)),
    "rte": GlueSpec("RTE", "sentence1", "sentence2", "label", _ENTAILMENT, submission=("RTE",)),
    "wnli": GlueSpec(
        "WNLI", "sentence1", "sentence2", "label", ("not_entailment", "entailment"), ("0", "1"), submission=("WNLI",)
    ),
    "ax": GlueSpec(
        "AX", "sentence1", "sentence2", "label", _NLI, metrics=("mcc", "accuracy"), dev=(), submission=("AX",),
        files={"test": ("diagnostic.tsv", "AX.tsv", "test.tsv")},
    ),
}  # fmt: skip

# The nine scores whose mean is the paper's average (Table 1: 79.6 for Base): both MNLI sets, without WNLI.
AVERAGE = (
    ("mnli", "dev_matched"), ("mnli", "dev_mismatched"), ("qqp", "dev"), ("qnli", "dev"), ("sst2", "dev"),
    ("cola", "dev"), ("stsb", "dev"), ("mrpc", "dev"), ("rte", "dev"),
)  # fmt: skip

_METRICS: Mapping[str, Callable[..., float]] = {
    "accuracy": metrics.accuracy,
    "f1": metrics.binary_f1,
    "mcc": metrics.matthews_correlation,
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
}
_DIAGNOSTICS = ("AX", "diagnostic")  # the folder's name depends on how GLUE was downloaded
# The labeled diagnostics (diagnostic-full.tsv) use other column names than the unlabeled ones.
_FULL_DIAGNOSTICS = {"Premise": "sentence1", "Hypothesis": "sentence2", "Label": "label"}
# CoLA's train and dev files have no header line. The second column is the label, the third the authors' notation.
_COLA_COLUMNS = ("source", "label", "mark", "sentence")


def named_metrics(predictions: np.ndarray, *, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the named metrics."""
    return {name: _METRICS[name](predictions, labels=labels) for name in names}


def submission(name: str) -> dict[str, str]:
    """Return the file name, without `.tsv`, that the server expects for each test split predicted by a task's model."""
    spec = TASKS[name]
    return dict(zip(spec.test, spec.submission, strict=True)) | ({"ax": "AX"} if name == "mnli" else {})


class GlueTask(Task):
    """A task of GLUE."""

    def __init__(self, name: str, *, data: DataOptions):
        """Set the task up by its name, a key of `TASKS`."""
        self.name, self.data, self.spec = name, data, TASKS[name]
        self.kind = Classification if self.spec.labels else Regression
        self.labels = self.spec.labels
        self.selection, self.selections = self.spec.metrics[0], self.spec.metrics

    def eval_splits(self) -> tuple[str, ...]:
        """Return the dev sets."""
        if self.data.dev_fraction > 0:
            return ("dev",)
        return self.spec.dev if self.data.dev_split == "dev" else (self.data.dev_split,)

    def test_splits(self) -> tuple[str, ...]:
        """Return the test sets. MNLI's include the diagnostics, if their file exists."""
        return (*self.spec.test, "ax") if self.name == "mnli" and self._has_diagnostics() else self.spec.test

    def read(self, split: str) -> list[TextExample]:
        """Return the rows of a split."""
        if split == "ax":
            return GlueTask("ax", data=dataclasses.replace(self.data, directory=self._diagnostics())).read("test")
        if self.data.directory.startswith(TFDS_PREFIX):
            return read_tfds(self.data.directory, task=self.name, split=split)
        if self.name == "mrpc" and split in ("train", "dev"):
            return self._read_mrpc(split)
        return [self._example(row, split) for row in self._rows(self._file(split))]

    def featurize(self, examples: Sequence[TextExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance per example."""
        del training
        return texts.text_features(examples, tokenizer=tokenizer, data=self.data)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return the official metrics as fractions."""
        if self.kind is Regression:
            predictions, labels = texts.predicted_numbers(outputs), texts.label_numbers(split)
            return named_metrics(predictions, labels=labels, names=self.spec.metrics)
        return named_metrics(texts.predicted_ids(outputs), labels=texts.label_ids(split), names=self.spec.metrics)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write `index<TAB>prediction` rows; a test set's file has the name that the GLUE server expects."""
        path = directory / f"{submission(self.name).get(split.name, f'{self.spec.directory}-{split.name}')}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{index}\t{self.format_prediction(output)}\n" for index, output in enumerate(outputs)]
        write_text(path, "index\tprediction\n" + "".join(rows))
        return [path]

    def format_prediction(self, output: np.ndarray) -> str:
        """Return a prediction in the server's format: a label as in the files, or a number from 0 to 5."""
        if self.kind is Regression:
            return f"{min(max(float(output[0]), 0.0), 5.0):.3f}"
        return (self.spec.values or self.spec.labels)[int(np.argmax(output))]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst errors."""
        if self.kind is Regression:
            return texts.regression_mistakes(split, outputs, count=count)
        return texts.classification_mistakes(split, outputs, labels=self.labels, count=count)

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the confusion matrix."""
        if self.kind is Regression:
            return {}
        return {"confusion": texts.confusion_table(split, outputs, labels=self.labels)}

    def _diagnostics(self) -> str:
        """Return the folder of AX, a sibling of MNLI's."""
        if self.data.directory.startswith(TFDS_PREFIX):
            return self.data.directory
        parent = Path(self._folder()).parent
        return str(next((parent / name for name in _DIAGNOSTICS if (parent / name).is_dir()), parent / _DIAGNOSTICS[0]))

    def _has_diagnostics(self) -> bool:
        directory = self._diagnostics()
        if directory.startswith(TFDS_PREFIX):
            return has_tfds(directory, task="ax")
        return any((Path(directory) / name).is_file() for name in TASKS["ax"].files["test"])

    def _folder(self) -> str:
        inner = Path(self.data.directory) / self.spec.directory
        return str(inner) if inner.is_dir() else self.data.directory

    def _file(self, split: str) -> Path:
        names = self.spec.files.get(split, (f"{split}.tsv",))
        return find_file(self._folder(), file=split_file(self.data, split), names=names, split=split)

    def _rows(self, path: Path) -> list[Row]:
        headless = self.name == "cola" and not path.name.startswith("test")
        columns = _COLA_COLUMNS if headless else ()
        rows = list(read_tsv(path, columns=columns, skip_malformed=self.name == "qqp"))
        if self.name != "ax":
            return rows
        return [Row({_FULL_DIAGNOSTICS.get(n, n): v for n, v in row.fields.items()}, row.location) for row in rows]

    def _example(self, row: Row, split: str) -> TextExample:
        spec = self.spec
        pair = column(row, spec.text_pair) if spec.text_pair else None
        unlabeled = split.startswith("test") and spec.label not in row.fields
        return TextExample(column(row, spec.text), pair, None if unlabeled else self._label(row))

    def _label(self, row: Row) -> int | float:
        value = column(row, self.spec.label)
        if self.kind is Regression:
            return finite_number(value, location=row.location, name=self.spec.label)
        values = self.spec.values or self.spec.labels
        if value not in values:
            raise UserError(
                f"{row.location}: unknown label {value!r}: fix the row; the labels of {self.name} are "
                f"{', '.join(values)}"
            )
        return values.index(value)

    def _read_mrpc(self, split: str) -> list[TextExample]:
        """Read GLUE's own files if they exist, else split Microsoft's train file by GLUE's list of ids."""
        folder = Path(self._folder())
        file = split_file(self.data, split)
        if file or (folder / f"{split}.tsv").is_file():
            path = find_file(str(folder), file=file, names=(f"{split}.tsv",))
            return [self._example(row, split) for row in self._rows(path)]
        rows = self._rows(find_file(str(folder), file="", names=("train.tsv", "msr_paraphrase_train.txt")))
        id_lists = (folder / name for name in ("mrpc_dev_ids.tsv", "dev_ids.tsv"))
        id_list = next((path for path in id_lists if path.is_file()), None)
        if id_list is None:
            if split == "dev":
                raise UserError(
                    f"{folder}: no dev.tsv, and no dev_ids.tsv (GLUE's list of the dev rows in "
                    "msr_paraphrase_train.txt): hold out part of train with --config.data.dev_fraction=0.1, or "
                    "select on the test file with --config.data.dev_split=test"
                )
            return [self._example(row, split) for row in rows]
        ids = {tuple(line.split()) for line in read_text(id_list).splitlines()}
        is_dev = [(column(row, "#1 ID"), column(row, "#2 ID")) in ids for row in rows]
        return [self._example(row, split) for row, dev in zip(rows, is_dev, strict=True) if dev == (split == "dev")]
