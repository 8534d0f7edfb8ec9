"""GLUE from TFDS: by name (`tfds:glue`, which downloads it) or from a prepared folder (`tfds:DIR`)."""

from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.texts import TextExample

TFDS_PREFIX = "tfds:"
_SPLITS = {
    "dev": "validation",
    "dev_matched": "validation_matched",
    "dev_mismatched": "validation_mismatched",
}
# The text features of each task. TFDS uses GLUE's own column names except for MRPC.
_TEXTS = {
    "cola": ("sentence", ""),
    "sst2": ("sentence", ""),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "mnli": ("premise", "hypothesis"),
    "ax": ("premise", "hypothesis"),
}


def read_tfds(directory: str, *, task: str, split: str) -> list[TextExample]:
    """Return the rows of a split in GLUE's own order.

    `directory` is `tfds:glue`, or `tfds:FOLDER` with a prepared data set.

    Raises:
      UserError: if the data set, the split or a feature does not exist, or only TensorFlow can read its files.
    """
    builder = _open(directory.removeprefix(TFDS_PREFIX), task=task)
    name = _SPLITS.get(split, split)
    if name not in builder.info.splits:
        raise UserError(
            f"TFDS data set {builder.info.full_name} has no split {name}: its splits are "
            f"{', '.join(builder.info.splits)}"
        )
    first, second = _TEXTS.get(task, ("sentence1", "sentence2"))
    missing = [name for name in (first, second, "label", "idx") if name and name not in builder.info.features]
    if missing:
        raise UserError(
            f"TFDS data set {builder.info.full_name} has no feature {missing[0]}: its features are "
            f"{', '.join(builder.info.features)}; use a data set prepared by TFDS's glue/{task}"
        )
    try:
        records = builder.as_data_source(split=name)
    except NotImplementedError as error:
        raise UserError(
            f"TFDS data set {builder.info.full_name} is not in a random-access format: prepare it again with "
            f"tfds.builder('glue/{task}', file_format='array_record').download_and_prepare()"
        ) from error
    rows = records.__getitems__(list(range(len(records)))) if len(records) else []
    # TFDS shuffles when it writes; the server expects GLUE's order.
    rows = sorted(rows, key=lambda row: int(row["idx"]))
    return [_example(row, first, second, regression=task == "stsb") for row in rows]


def has_tfds(directory: str, *, task: str) -> bool:
    """Return whether `directory` has a task. TFDS itself has all; a folder has those that were prepared in it."""
    path = directory.removeprefix(TFDS_PREFIX)
    return (Path(path) / task).is_dir() if Path(path).is_dir() else "/" not in path


def _example(row: Any, first: str, second: str, *, regression: bool) -> TextExample:
    label = float(row["label"]) if regression else int(row["label"])
    pair = _text(row[second]) if second else None
    return TextExample(_text(row[first]), pair, None if label < 0 else label)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _open(path: str, *, task: str) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and needed only here

    try:
        if Path(path).is_dir():
            inner = Path(path) / task
            return tfds.builder_from_directory(inner if inner.is_dir() else path)
        builder = tfds.builder(f"{path}/{task}" if "/" not in path else path, file_format="array_record")
        builder.download_and_prepare()
        return builder
    except Exception as error:  # the data set's own code may raise anything; the message gives the reason
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"config.data.directory=tfds:{path}: no such TFDS data set ({reason})") from error
