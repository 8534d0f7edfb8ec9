"""Describe a finished data set: written as TFDS metadata, read back without TFDS.

A data set directory OUT holds

    vocab/                               the tokenizer's files
    manifest.json                        what the data set is made from (builder.py)
    bert_pretraining/len128/1.0.0/       one TFDS data set for each max_seq_length:
        dataset_info.json features.json  TFDS's own
        metadata.json                    TFDS's place for a data set's own facts: the fields of `DatasetInfo`
        bert_pretraining-train.array_record-00000-of-00008 ...

dataset_info.json is written last: a length without one is not finished.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.records import FEATURE, RowSpec
from bert_jax.data.shards import DATASET_NAME, VERSION, dataset_directory
from bert_jax.errors import UserError
from bert_jax.files import load_json

_DESCRIPTION = "Unmasked instances for BERT pre-training; bert_jax.data.records says how a row is laid out."
_INFO_FILE = "dataset_info.json"
_METADATA_FILE = "metadata.json"


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """Hold what a shard's file must be like."""

    name: str
    num_rows: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Hold the facts of a data set at one length.

    Attributes:
      directory: the data set (OUT), with all its lengths.
      vocab_directory: where `load_tokenizer` finds its tokenizer.
      vocab_size: number of pieces of the vocabulary.
      vocabulary_fingerprint: the tokenizer's.
      instances_per_row: the most there are; 1 unless rows are packed.
      max_token_id: the largest id in any row; a model needs a larger vocab_size.
      data_fingerprint: SHA-256 over the text, the vocabulary and everything that decides on the instances except the
        length: the lengths of one data set share it.
      row_spec: how rows are laid out.
      shards: files of each split, "train" and "validation".
      statistics: counts and shares as `statistics.summarize` names them.
    """

    directory: Path
    vocab_directory: Path
    vocab_size: int
    vocabulary_fingerprint: str
    do_lower_case: bool
    objective: str
    recipe: str
    max_seq_length: int
    instances_per_row: int
    max_token_id: int
    data_fingerprint: str
    row_spec: RowSpec
    shards: Mapping[str, Sequence[ShardFile]]
    statistics: Mapping[str, Any]

    @property
    def num_train_rows(self) -> int:
        """Return the number of rows to train on."""
        return self.num_rows("train")

    @property
    def num_validation_rows(self) -> int:
        """Return the number of held-out rows."""
        return self.num_rows("validation")

    @property
    def mean_instances(self) -> float:
        """Return how many instances a row has on average."""
        if self.instances_per_row == 1:
            return 1.0
        return sum(self.statistics["instances"].values()) / sum(self.statistics["rows"].values())

    @property
    def attended_share(self) -> float:
        """Return the share of the pairs of positions of a row whose attention counts: all where rows are not packed."""
        return 1.0 if self.instances_per_row == 1 else self.statistics["attended_share"]

    def num_rows(self, split: str) -> int:
        """Return the number of rows of a split, 0 if there is none."""
        return sum(shard.num_rows for shard in self.shards.get(split, ()))

    def file(self, shard: ShardFile) -> Path:
        """Return the path of a shard."""
        return dataset_directory(self.directory, max_seq_length=self.max_seq_length) / shard.name


def is_finished(directory: str | Path, *, max_seq_length: int) -> bool:
    """Return whether the data set of a length is complete."""
    return (dataset_directory(directory, max_seq_length=max_seq_length) / _INFO_FILE).exists()


def finished_lengths(directory: str | Path) -> list[int]:
    """Return the lengths that a data set has."""
    found = Path(directory).glob(f"{DATASET_NAME}/len*/{VERSION}/{_INFO_FILE}")
    return sorted(int(path.parent.parent.name.removeprefix("len")) for path in found)


def load_dataset_info(directory: str | Path, *, max_seq_length: int) -> DatasetInfo:
    """Read the facts of the data set in `directory` at a length.

    Raises:
      UserError: if there is no data set, none of this length, or its metadata cannot be read.
    """
    directory = Path(directory)
    if not is_finished(directory, max_seq_length=max_seq_length):
        lengths = finished_lengths(directory)
        if lengths:
            raise UserError(
                f"{directory} has no rows of max_seq_length={max_seq_length}, only of {', '.join(map(str, lengths))}: "
                f"make them with prepare --max_seq_length={max_seq_length}, or train at one of those"
            )
        state = (
            "holds an unfinished data set: run prepare"
            if directory.exists()
            else "does not exist: make it with prepare"
        )
        raise UserError(f"data set {directory} {state} --input=FILES --out={directory}")
    file = dataset_directory(directory, max_seq_length=max_seq_length) / _METADATA_FILE
    try:
        value = load_json(file)
        shards = {split: tuple(ShardFile(**item) for item in items) for split, items in value.pop("shards").items()}
        spec = RowSpec(**value.pop("row_spec"))
        return DatasetInfo(
            directory=directory, vocab_directory=directory / "vocab", row_spec=spec, shards=shards, **value
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}): delete {file.parent} and run prepare again"
        ) from None


def write_dataset_info(info: DatasetInfo) -> None:
    """Write the TFDS metadata that make the shards of `info` a finished data set."""
    import tensorflow_datasets as tfds  # a second to import, needed only here
    from etils import epath
    from tensorflow_datasets.core import dataset_info, naming, splits

    directory = dataset_directory(info.directory, max_seq_length=info.max_seq_length)
    value = dataclasses.asdict(info)
    del value["directory"], value["vocab_directory"]
    spec = info.row_spec
    written = tfds.core.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=DATASET_NAME,
            version=tfds.core.Version(VERSION),
            data_dir=str(directory),
            module_name=__name__,
            config_name=f"len{info.max_seq_length}",
        ),
        description=_DESCRIPTION,
        features=tfds.features.FeaturesDict(
            {FEATURE: tfds.features.Tensor(shape=(spec.num_elements,), dtype=np.dtype(spec.dtype), encoding="bytes")}
        ),
        metadata=tfds.core.MetadataDict(value),
    )
    written.set_file_format("array_record")
    found = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.num_rows for shard in shards],
            num_bytes=sum(shard.num_bytes for shard in shards),
            filename_template=naming.ShardedFileTemplate(
                dataset_name=DATASET_NAME, data_dir=epath.Path(directory), filetype_suffix="array_record", split=split
            ),
        )
        for split, shards in info.shards.items()
        if shards
    ]
    written.set_splits(splits.SplitDict(found))
    # TFDS writes its files in an order of its own, so dataset_info.json arrives by a rename at the end.
    partial = directory / "info.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        written.write_to_directory(partial)
        names = sorted(path.name for path in partial.iterdir())
        for name in sorted(names, key=lambda name: name == _INFO_FILE):
            (partial / name).replace(directory / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
