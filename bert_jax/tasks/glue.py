"""GLUE: the official TSV files with their quirks, or TFDS; the official metric of each task.

Quirks: CoLA has no header line; quotes are ordinary characters; MRPC comes as Microsoft's two files (byte order mark,
CRLF), of which GLUE divides train by a list of ids; QQP has broken rows, which GLUE's own loader leaves out; MNLI has
two dev and two test sets; AX has test rows only and is answered by the MNLI model.
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
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file
from bert_jax.tasks.texts import TextExample


@dataclasses.dataclass(frozen=True)
class GlueSpec:
    """Describe one GLUE task."""

    directory: str
    text: str
    text_pair: str
    label: str
    labels: tuple[str, ...]  # names, in the order of TFDS's ids; none for regression
    values: tuple[str, ...] = ()  # as written in the files; empty: the names themselves
    metrics: tuple[str, ...] = ("accuracy",)  # the first is the paper's (Table 1), and selects
    dev: tuple[str, ...] = ("dev",)
    test: tuple[str, ...] = ("test",)
    submission: tuple[str, ...] = ()  # the server's file name of each test split
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

# The nine numbers whose mean is the paper's average (Table 1: 79.6 for Base): both MNLI sets, no WNLI.
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
_DIAGNOSTICS = ("AX", "diagnostic")  # the folder's names in two ways of fetching GLUE
# The labeled diagnostics (diagnostic-full.tsv) name their columns otherwise than those to be answered.
_FULL_DIAGNOSTICS = {"Premise": "sentence1", "Hypothesis": "sentence2", "Label": "label"}
# CoLA's train and dev have no header line; the second column is the label, the third the authors' original mark.
_COLA_COLUMNS = ("source", "label", "mark", "sentence")


def figures(predictions: np.ndarray, *, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the named metrics."""
    return {name: _METRICS[name](predictions, labels=labels) for name in names}


def submission(name: str) -> dict[str, str]:
    """Return the server's file name, without `.tsv`, of each test split that a task's model answers."""
    spec = TASKS[name]
    return dict(zip(spec.test, spec.submission, strict=True)) | ({"ax": "AX"} if name == "mnli" else {})


class GlueTask(Task):
    """Be one task of GLUE."""

    def __init__(self, name: str, *, data: DataOptions):
        """Take the task called `name`, one of `TASKS`."""
        self.name, self.data, self.spec = name, data, TASKS[name]
        self.kind = Classification if self.spec.labels else Regression
        self.labels = self.spec.labels
        self.selection = self.spec.metrics[0]

    def eval_splits(self) -> tuple[str, ...]:
        """Return the dev sets."""
        if self.data.dev_fraction > 0:
            return ("dev",)
        return self.spec.dev if self.data.dev_split == "dev" else (self.data.dev_split,)

    def test_splits(self) -> tuple[str, ...]:
        """Return the test sets; with MNLI's the diagnostics, where they are there."""
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

    def featurise(self, examples: Sequence[TextExample], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance an example."""
        del training
        return texts.text_features(examples, tokenizer=tokenizer, max_seq_length=self.data.max_seq_length)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return the official metrics as fractions."""
        if self.kind is Regression:
            return figures(texts.numbers(outputs), labels=texts.numbers_there(split), names=self.spec.metrics)
        return figures(texts.predicted_ids(outputs), labels=texts.label_ids(split), names=self.spec.metrics)

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write `index<TAB>prediction` rows under the name that the GLUE server expects, for test sets."""
        path = directory / f"{submission(self.name).get(split.name, f'{self.spec.directory}-{split.name}')}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{index}\t{self.written(output)}\n" for index, output in enumerate(outputs)]
        write_text(path, "index\tprediction\n" + "".join(rows))
        return [path]

    def written(self, output: np.ndarray) -> str:
        """Return a prediction as the server wants it: a label as in the files, or a number from 0 to 5."""
        if self.kind is Regression:
            return f"{min(max(float(output[0]), 0.0), 5.0):.3f}"
        return (self.spec.values or self.spec.labels)[int(np.argmax(output))]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the worst mistakes."""
        if self.kind is Regression:
            return texts.regression_mistakes(split, outputs, count=count)
        return texts.classification_mistakes(split, outputs, labels=self.labels, count=count)

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the confusion table."""
        if self.kind is Regression:
            return {}
        return {"confusion": texts.confusion_table(split, outputs, labels=self.labels)}

    def _diagnostics(self) -> str:
        """Return the folder of AX, beside MNLI's."""
        if self.data.directory.startswith(TFDS_PREFIX):
            return self.data.directory
        beside = Path(self._folder()).parent
        return str(next((beside / name for name in _DIAGNOSTICS if (beside / name).is_dir()), beside / _DIAGNOSTICS[0]))

    def _has_diagnostics(self) -> bool:
        directory = self._diagnostics()
        if directory.startswith(TFDS_PREFIX):
            return has_tfds(directory, task="ax")
        return any((Path(directory) / name).is_file() for name in TASKS["ax"].files["test"])

    def _folder(self) -> str:
        inner = Path(self.data.directory) / self.spec.directory
        return str(inner) if inner.is_dir() else self.data.directory

    def _file(self, split: str) -> Path:
        given = {"train": self.data.train_file, "dev": self.data.dev_file, "test": self.data.test_file}.get(split, "")
        return find_file(self._folder(), given=given, names=self.spec.files.get(split, (f"{split}.tsv",)))

    def _rows(self, path: Path) -> list[Row]:
        headless = self.name == "cola" and not path.name.startswith("test")
        columns = _COLA_COLUMNS if headless else ()
        rows = list(read_tsv(path, columns=columns, skip_malformed=self.name == "qqp"))
        if self.name != "ax":
            return rows
        return [Row({_FULL_DIAGNOSTICS.get(n, n): v for n, v in row.fields.items()}, row.place) for row in rows]

    def _example(self, row: Row, split: str) -> TextExample:
        spec = self.spec
        pair = column(row, spec.text_pair) if spec.text_pair else None
        unlabelled = split.startswith("test") and spec.label not in row.fields
        return TextExample(column(row, spec.text), pair, None if unlabelled else self._label(row))

    def _label(self, row: Row) -> int | float:
        written = column(row, self.spec.label)
        if self.kind is Regression:
            return finite_number(written, place=row.place, name=self.spec.label)
        values = self.spec.values or self.spec.labels
        if written not in values:
            raise UserError(f"{row.place}: unknown label {written!r}: {self.name} has {', '.join(values)}")
        return values.index(written)

    def _read_mrpc(self, split: str) -> list[TextExample]:
        """Read GLUE's own files if they are there, else divide Microsoft's train file by GLUE's list of ids."""
        folder = Path(self._folder())
        given = self.data.train_file if split == "train" else self.data.dev_file
        if given or (folder / f"{split}.tsv").is_file():
            path = find_file(str(folder), given=given, names=(f"{split}.tsv",))
            return [self._example(row, split) for row in self._rows(path)]
        rows = self._rows(find_file(str(folder), given="", names=("train.tsv", "msr_paraphrase_train.txt")))
        listed = next(
            (folder / name for name in ("mrpc_dev_ids.tsv", "dev_ids.tsv") if (folder / name).is_file()), None
        )
        if listed is None:
            if split == "dev":
                raise UserError(
                    f"{folder}: holds no dev.tsv and no dev_ids.tsv, GLUE's list of the dev rows of "
                    "msr_paraphrase_train.txt: hold out a part of train with --config.data.dev_fraction=0.1, or "
                    "select on the test file with --config.data.dev_split=test"
                )
            return [self._example(row, split) for row in rows]
        ids = {tuple(line.split()) for line in read_text(listed).splitlines()}
        is_dev = [(column(row, "#1 ID"), column(row, "#2 ID")) in ids for row in rows]
        return [self._example(row, split) for row, dev in zip(rows, is_dev, strict=True) if dev == (split == "dev")]
