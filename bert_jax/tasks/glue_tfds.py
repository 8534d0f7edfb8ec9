"""Read GLUE through TFDS by name (`tfds:glue`, where there is a network) or from a prepared folder (`tfds:DIR`)."""

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
# The two text features by task; TFDS has GLUE's own column names except for MRPC.
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

    `directory` is `tfds:glue` or `tfds:FOLDER` of a prepared data set.

    Raises:
      UserError: if the data set, the split or a feature is not there, or its files need TensorFlow to be read.
    """
    builder = _open(directory.removeprefix(TFDS_PREFIX), task=task)
    name = _SPLITS.get(split, split)
    if name not in builder.info.splits:
        raise UserError(
            f"TFDS data set {builder.info.full_name} has no split {name}: it has {', '.join(builder.info.splits)}"
        )
    first, second = _TEXTS.get(task, ("sentence1", "sentence2"))
    missing = [wanted for wanted in (first, second, "label", "idx") if wanted and wanted not in builder.info.features]
    if missing:
        raise UserError(
            f"TFDS data set {builder.info.full_name} has no feature {missing[0]}: it has "
            f"{', '.join(builder.info.features)}; give one of TFDS's own glue/{task}"
        )
    try:
        records = builder.as_data_source(split=name)
    except NotImplementedError as error:
        raise UserError(
            f"TFDS data set {builder.info.full_name} is not in a random-access format: prepare it again with "
            f"tfds.builder('glue/{task}', file_format='array_record').download_and_prepare()"
        ) from error
    rows = records.__getitems__(list(range(len(records)))) if len(records) else []
    rows = sorted(rows, key=lambda row: int(row["idx"]))  # TFDS shuffles when it writes; the server goes by number
    return [_example(row, first, second, regression=task == "stsb") for row in rows]


def has_tfds(directory: str, *, task: str) -> bool:
    """Return whether `directory` has a task: by name TFDS has them all, a folder what was prepared there."""
    path = directory.removeprefix(TFDS_PREFIX)
    return (Path(path) / task).is_dir() if Path(path).is_dir() else "/" not in path


def _example(row: Any, first: str, second: str, *, regression: bool) -> TextExample:
    label = float(row["label"]) if regression else int(row["label"])
    pair = _text(row[second]) if second else None
    return TextExample(_text(row[first]), pair, None if label < 0 else label)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _open(path: str, *, task: str) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and needed for such inputs alone

    try:
        if Path(path).is_dir():
            inner = Path(path) / task
            return tfds.builder_from_directory(inner if inner.is_dir() else path)
        builder = tfds.builder(f"{path}/{task}" if "/" not in path else path, file_format="array_record")
        builder.download_and_prepare()
        return builder
    except Exception as error:  # whatever the data set's own code raises; the reason is in the message
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"config.data.directory=tfds:{path}: no such TFDS data set ({reason})") from error
