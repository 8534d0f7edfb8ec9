"""Text data sets of TFDS, by registered name or directory, without TensorFlow.

ArrayRecord files are read in ranges of records, TFRecord files one after the other.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bert_jax.data.lines import decode
from bert_jax.data.prose import read_document
from bert_jax.data.source import ReadReport, TextSource
from bert_jax.data.tfds_builders import open_builder, prepare, require_prepared
from bert_jax.data.tfrecords import read_tfrecords
from bert_jax.errors import UserError

PREFIX = "tfds:"
_FILE = "file:"  # in place of a split's name: a source is a file of it
RANGE_BYTES = 1 << 26  # a source is a range of records of about this size
_BATCH_BYTES = 1 << 22  # records are read in batches: reading a single one takes time proportional to its file

# A name may end with ":1.2.3" (a version), a directory may start with "gs://": neither looks like a feature.
_INPUT = re.compile(r"tfds:(?P<path>.+?)(?::(?P<feature>[A-Za-z_]\w*))?")


def find_tfds_sources(item: str, *, download: bool = True, report: Callable[[str], None] = print) -> list[TextSource]:
    """Return the split `train` of a data set (or its only split) as sources, one per range of records.

    Raises:
        NotPrepared: without `download`, if the data set would have to be downloaded.
        UserError: if the data set, its split or the feature is missing, or its files do not allow random access.
    """
    match = _INPUT.fullmatch(item)
    if match is None:
        raise UserError(f"data.input: '{item}' does not name a data set: type tfds:NAME/CONFIG or tfds:DIRECTORY")
    path, feature = match["path"], match["feature"] or "text"
    builder = open_builder(path)
    if download:
        prepare(builder, path=path, report=report)
    else:
        require_prepared(builder, path=path)
    _check_feature(builder, path, feature)
    split = _find_split(builder, path)
    records, size = builder.info.splits[split].num_examples, builder.info.splits[split].num_bytes
    if not records:
        raise UserError(f"data.input: TFDS data set '{path}' has no records in its split '{split}'")
    if _file_format(builder) == "tfrecord":
        return _file_sources(builder, path=path, split=split, feature=feature)
    _open_records(builder, path, split)
    step = max(1, records * RANGE_BYTES // max(size, 1))
    return [
        TextSource(
            name=f"{PREFIX}{builder.info.full_name}:{feature}[{split}:{start}]",
            size=size * (end - start) // records,
            kind="tfds",
            path=path,
            split=f"{split}[{start}:{end}]",
            feature=feature,
        )
        for start in range(0, records, step)
        for end in (min(start + step, records),)
    ]


def read_tfds_events(source: TextSource, *, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs of a range of records, and None after each record.

    Raises:
        UserError: if the data set no longer exists, or its files are damaged.
    """
    builder = open_builder(source.path)
    if source.split.startswith(_FILE):
        yield from _read_file_events(builder, source, report=report)
        return
    records = _open_records(builder, source.path, source.split)
    step = max(1, len(records) * _BATCH_BYTES // max(source.size, 1))
    for start in range(0, len(records), step):
        try:
            batch = records.__getitems__(range(start, min(start + step, len(records))))
        except (ValueError, IndexError, OSError, RuntimeError) as error:  # the errors of ArrayRecord's readers
            raise UserError(f"TFDS data set '{source.path}' is damaged ({error}): prepare it again") from error
        for record in batch:
            yield from _events(record[source.feature], report=report)


def _events(value: str | bytes, *, report: ReadReport) -> Iterator[str | None]:
    report.bytes += len(value)
    yield from read_document(value if isinstance(value, str) else decode(value, report), report=report)


def _file_format(builder: Any) -> str:
    return str(getattr(builder.info.file_format, "value", ""))


def _file_sources(builder: Any, *, path: str, split: str, feature: str) -> list[TextSource]:
    """Return a source per file of a split."""
    info = builder.info.splits[split]
    return [
        TextSource(
            name=f"{PREFIX}{builder.info.full_name}:{feature}[{split}:{number}]",
            size=info.num_bytes * length // max(info.num_examples, 1),
            kind="tfds",
            path=path,
            split=f"{_FILE}{file}",
            feature=feature,
        )
        for number, (file, length) in enumerate(zip(info.filenames, info.shard_lengths, strict=True))
        if length
    ]


def _read_file_events(builder: Any, source: TextSource, *, report: ReadReport) -> Iterator[str | None]:
    file = builder.data_path / source.split.removeprefix(_FILE)
    try:
        with file.open("rb") as stream:
            for record in read_tfrecords(stream, name=str(file)):
                yield from _events(builder.info.features.deserialize_example_np(record)[source.feature], report=report)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _find_split(builder: Any, path: str) -> str:
    splits = sorted(builder.info.splits)
    if "train" not in splits and len(splits) > 1:
        raise UserError(f"data.input: TFDS data set '{path}' has no split 'train', only {', '.join(splits)}")
    return "train" if "train" in splits else splits[0]


def _check_feature(builder: Any, path: str, feature: str) -> None:
    known = builder.info.features or {}
    text_features = [
        name for name in sorted(known) if known[name].shape == () and np.dtype(known[name].np_dtype).hasobject
    ]
    if feature not in text_features:
        what = "is not text" if feature in known else "does not exist"
        available = ", ".join(text_features) or "none"
        raise UserError(
            f"data.input: feature '{feature}' of TFDS data set '{path}' {what}: type tfds:{path}:FEATURE "
            f"(text features: {available})"
        )


def _open_records(builder: Any, path: str, split: str) -> Any:
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"data.input: TFDS data set '{path}' is not in a random-access format: prepare it again with "
            "tfds.builder(NAME, file_format='array_record')"
        ) from error
