"""Facts of a finished data set: written as TFDS metadata, read without TFDS.

A data set directory OUT holds

    vocab/                               the tokenizer's files
    manifest.json                        what the data set is built from (manifest.py)
    bert_pretraining/len128/1.0.0/       one TFDS data set per max_seq_length:
        dataset_info.json features.json  TFDS's own
        metadata.json                    TFDS's file for extra metadata: the fields of `DatasetInfo`
        bert_pretraining-train.array_record-00000-of-00008 ...

dataset_info.json is written last: a length without one is not finished.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from bert_jax.data.bucket_datasets import download_shards, facts_folder, lengths_in_bucket
from bert_jax.data.records import FEATURE, RowSpec
from bert_jax.data.shards import DATASET_NAME, INFO_FILE, METADATA_FILE, VERSION, dataset_directory
from bert_jax.errors import UserError
from bert_jax.json_files import load_json
from bert_jax.json_forms import Count, Finite, fit
from bert_jax.locations import is_bucket

_DESCRIPTION = "Unmasked instances for BERT pre-training; bert_jax.data.records describes the layout of a row."
_ROW_DTYPES = ("uint16", "int32")


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """The expected size of a shard's file."""

    name: str
    num_rows: Count
    num_bytes: Count


class _Statistics(TypedDict):
    """The statistics that other code computes with."""

    documents: dict[str, Count]
    tokens: dict[str, Count]
    bytes: NotRequired[dict[str, Count]]
    rows: dict[str, Count]
    instances: dict[str, Count]
    attended_share: Finite
    padding_share: Finite


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The facts of a data set at one sequence length.

    Attributes:
      directory: the data set (OUT) with all its lengths.
      vocab_directory: folder of its tokenizer, for `load_tokenizer`.
      vocab_size: number of tokens of the vocabulary.
      vocabulary_fingerprint: fingerprint of the tokenizer.
      instances_per_row: most instances per sequence; 1 without packing.
      max_token_id: the largest token id; a model needs a larger vocab_size.
      data_fingerprint: SHA-256 of the text, the vocabulary and all settings that determine the instances except the
        length: all lengths of a data set share it.
      row_spec: layout of the records.
      shards: files per split, "train" and "validation".
      statistics: counts and fractions, named by `statistics.summarize`.
    """

    directory: Path
    vocab_directory: Path
    vocab_size: Count
    vocabulary_fingerprint: str
    do_lower_case: bool
    objective: str
    recipe: str
    max_seq_length: Count
    instances_per_row: Count
    max_token_id: Count
    data_fingerprint: str
    row_spec: RowSpec
    shards: Mapping[str, Sequence[ShardFile]]
    statistics: Mapping[str, Any]

    @property
    def num_train_rows(self) -> int:
        """Return the number of training sequences."""
        return self.num_rows("train")

    @property
    def num_validation_rows(self) -> int:
        """Return the number of held-out sequences."""
        return self.num_rows("validation")

    @property
    def mean_instances(self) -> float:
        """Return the mean number of instances per sequence."""
        if self.instances_per_row == 1:
            return 1.0
        return sum(self.statistics["instances"].values()) / sum(self.statistics["rows"].values())

    @property
    def attended_share(self) -> float:
        """Return the fraction of position pairs within one instance: attention that counts (1 without packing)."""
        return 1.0 if self.instances_per_row == 1 else self.statistics["attended_share"]

    @property
    def tokens_per_byte(self) -> float | None:
        """Return the tokens per UTF-8 byte of the held-out text; None if they were not counted."""
        num_bytes = self.statistics.get("bytes", {}).get("validation", 0)
        return self.statistics["tokens"]["validation"] / num_bytes if num_bytes else None

    def num_rows(self, split: str) -> int:
        """Return the number of sequences of a split, 0 if it does not exist."""
        return sum(shard.num_rows for shard in self.shards.get(split, ()))

    def file(self, shard: ShardFile) -> Path:
        """Return the path of a shard."""
        return dataset_directory(self.directory, max_seq_length=self.max_seq_length) / shard.name


def is_finished(directory: str | Path, *, max_seq_length: int) -> bool:
    """Return whether the data set is complete at a length."""
    if is_bucket(directory):
        return max_seq_length in lengths_in_bucket(str(directory))
    return (dataset_directory(directory, max_seq_length=max_seq_length) / INFO_FILE).exists()


def finished_lengths(directory: str | Path) -> list[int]:
    """Return the lengths at which a data set is complete."""
    if is_bucket(directory):
        return lengths_in_bucket(str(directory))
    files = Path(directory).glob(f"{DATASET_NAME}/len*/{VERSION}/{INFO_FILE}")
    return sorted(int(file.parent.parent.name.removeprefix("len")) for file in files)


def load_dataset_info(directory: str | Path, *, max_seq_length: int) -> DatasetInfo:
    """Read the facts of the data set in `directory` at a length. Of one in a bucket, `require_shards` gets the rest.

    Raises:
      UserError: if there is no data set, it lacks this length, or its metadata cannot be read.
    """
    if not is_finished(directory, max_seq_length=max_seq_length):
        lengths = finished_lengths(directory)
        if lengths:
            raise UserError(
                f"{directory} has no sequences of max_seq_length={max_seq_length}, only of "
                f"{', '.join(map(str, lengths))}: add them with prepare --max_seq_length={max_seq_length}, or train at "
                "one of those lengths"
            )
        state = (
            "contains an unfinished data set: finish it with prepare"
            if not is_bucket(directory) and Path(directory).exists()
            else "does not exist: make it with prepare"
        )
        raise UserError(f"data set {directory} {state} --input=FILES --out={directory}")
    if is_bucket(directory):
        directory = facts_folder(str(directory), max_seq_length=max_seq_length)
    directory = Path(directory)
    file = dataset_directory(directory, max_seq_length=max_seq_length) / METADATA_FILE
    try:
        value = load_json(file, form=dict[str, Any])
        info = fit({**value, "directory": directory, "vocab_directory": directory / "vocab"}, DatasetInfo)
        fit(info.statistics, _Statistics, at="statistics")
        if (info.max_seq_length, info.row_spec.dtype in _ROW_DTYPES) != (max_seq_length, True):
            raise ValueError(f"it describes sequences of {info.max_seq_length} in {info.row_spec.dtype[:20]}")
        if sum(info.statistics["rows"].values()) != sum(map(info.num_rows, info.shards)):
            raise ValueError("its statistics and its shards have different numbers of sequences")
        return info
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file} cannot be read ({reason}): delete {file.parent} and run prepare again") from None


def require_shards(directory: str | Path, *, info: DatasetInfo, report: Callable[[str], None]) -> None:
    """Download the shards of a data set in a bucket that this machine does not have yet.

    Raises:
      UserError: if that fails.
    """
    if is_bucket(directory):
        download_shards(str(directory), info.directory, max_seq_length=info.max_seq_length, report=report)


def write_dataset_info(info: DatasetInfo) -> None:
    """Write the TFDS metadata that turn the shards of `info` into a finished data set."""
    import tensorflow_datasets as tfds  # imported here: it takes a second and nothing else needs it
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
    split_infos = [
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
    written.set_splits(splits.SplitDict(split_infos))
    # TFDS chooses the order of its files, so they are written elsewhere and dataset_info.json is moved here last.
    partial = directory / "info.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        written.write_to_directory(partial)
        names = sorted(path.name for path in partial.iterdir())
        for name in sorted(names, key=lambda name: name == INFO_FILE):
            (partial / name).replace(directory / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
