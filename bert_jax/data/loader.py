"""Load batches: batch k is a function of (seed, k), so the step number is the only state.

Sequence r of global batch k does not depend on the number of hosts: a batch is split into equal contiguous shards, and
a host reads the shards of its devices.
"""

import bisect
import itertools
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # a C++ module

from bert_jax.data.dataset_info import DatasetInfo, ShardFile, load_dataset_info
from bert_jax.data.records import decode_rows, parse_records
from bert_jax.errors import UserError

if TYPE_CHECKING:
    import grain

_READER_OPTIONS = "readahead_buffer_size:0"  # records are read one at a time, in random order
_SPARE_FILES = 256  # file descriptors reserved for the rest of the program
_MAX_SEED = 1 << 32  # limit of Grain


class PretrainingBatches:
    """The batches of one split, by number.

    With `shuffle` they never end (`len` is undefined), and each epoch has its own order. Without it, every sequence
    occurs once, and the last batch is padded with empty sequences, whose lengths are 0.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_seq_length: int,
        split: str = "train",
        batch_size: int,
        seed: int,
        shards: Sequence[int] = (0,),
        num_shards: int = 1,
        shuffle: bool = True,
    ):
        """Open the data set. A global batch of `batch_size` is split into `num_shards`; this host reads `shards`.

        Raises:
          UserError: for a missing data set, length or split; shards that do not divide the batch; a damaged file.
        """
        if batch_size <= 0 or batch_size % num_shards:
            raise UserError(
                f"a batch of {batch_size} sequences cannot be split into {num_shards} shards: choose a multiple of "
                f"{num_shards}"
            )
        self.info = load_dataset_info(directory, max_seq_length=max_seq_length)
        self.num_rows = self.info.num_rows(split)
        if not self.num_rows:
            raise UserError(
                f"data set {directory} has no {split} sequences at max_seq_length={max_seq_length}: "
                "build it again with a larger heldout_fraction or with more text"
            )
        self._shard_size = batch_size // num_shards
        self.local_batch_size = self._shard_size * len(shards)
        self._num_batches = None if shuffle else -(-self.num_rows // batch_size)
        self._rows = _RowReader(self.info, split)
        self._shards, self._num_shards = tuple(shards), num_shards
        self._blocks = self._index_blocks(seed % _MAX_SEED)

    def __len__(self) -> int:
        """Return the number of batches in one epoch; only without `shuffle`."""
        if self._num_batches is None:
            raise TypeError("shuffled batches have no end: choose how many to take")
        return self._num_batches

    def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
        """Return this host's part of global batch `batch`, with the keys of `records.decode_rows`."""
        return self._rows.read(self.row_indices(batch))

    def row_indices(self, batch: int) -> np.ndarray:
        """Return the data set indices of this host's part of global batch `batch`: [local batch], -1 if empty."""
        if batch < 0 or (self._num_batches is not None and batch >= self._num_batches):
            raise IndexError(f"batch {batch} of {self._num_batches}")
        blocks = [self._blocks[batch * self._num_shards + shard] for shard in self._shards]
        return np.concatenate(
            [block for block in blocks if block is not None]
        )  # None only in Grain's type: nothing is filtered

    def iterate(
        self, *, start: int = 0, stop: int | None = None, num_threads: int = 2, prefetch: int = 4
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches `start` to `stop - 1`, prefetching `prefetch` of them in `num_threads` threads."""
        import grain  # as in `_index_blocks`

        end = sys.maxsize if self._num_batches is None else self._num_batches
        numbers = grain.MapDataset.range(start, end if stop is None else min(stop, end))
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
        return iter(numbers.map(self.__getitem__).to_iter_dataset(options))

    def _index_blocks(self, seed: int) -> "grain.MapDataset[np.ndarray]":
        """Return a Grain data set of sequence indices, one element per batch shard, in order."""
        import grain  # imported late: it imports jax if installed

        if self._num_batches is None:
            rows = grain.MapDataset.range(self.num_rows).seed(seed).shuffle().repeat()
        else:
            num_filled = self._num_batches * self._shard_size * self._num_shards
            rows = grain.MapDataset.range(num_filled).map(lambda row: row if row < self.num_rows else -1)
        return rows.batch(self._shard_size, batch_fn=np.asarray)


class _RowReader:
    """Thread-safe reader of records by index, across the shards of a split."""

    def __init__(self, info: DatasetInfo, split: str):
        self._info = info
        self._shards = [shard for shard in info.shards[split] if shard.num_rows]
        self._ends = list(itertools.accumulate(shard.num_rows for shard in self._shards))
        self._readers: list[array_record_module.ArrayRecordReader | None] = [None] * len(self._shards)
        self._lock = threading.Lock()
        for shard in self._shards:
            self._check_size(shard)
        _allow_open_files(len(self._shards))

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Return the batch of records `numbers` [B]; -1 gives an empty sequence."""
        records = [self._read_record(number) for number in numbers[numbers >= 0].tolist()]
        spec = self._info.row_spec
        try:
            parsed = parse_records(records, spec=spec)
        except ValueError as error:
            directory = self._info.file(self._shards[0]).parent
            raise UserError(f"{directory} contains records of another layout ({error}): {_REBUILD}") from None
        rows = np.zeros((len(numbers), spec.num_elements), spec.dtype)
        rows[: len(parsed)] = parsed  # empty sequences are always at the end of a batch
        return decode_rows(rows, spec=spec)

    def _read_record(self, number: int) -> bytes:
        shard = bisect.bisect_right(self._ends, number)
        index = number - self._ends[shard] + self._shards[shard].num_rows
        reader = self._readers[shard] or self._open(shard)
        try:
            # A range of one record: reading a list of indices takes time proportional to the file size.
            return reader.read(index, index + 1)[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(self._shards[shard], str(error)) from None

    def _open(self, number: int) -> array_record_module.ArrayRecordReader:
        shard = self._shards[number]
        with self._lock:
            reader = self._readers[number]
            if reader is None:
                try:
                    reader = array_record_module.ArrayRecordReader(str(self._info.file(shard)), _READER_OPTIONS)
                    num_rows = reader.num_records()
                except (RuntimeError, ValueError) as error:
                    raise self._damaged(shard, str(error)) from None
                if num_rows != shard.num_rows:
                    raise self._damaged(shard, f"{num_rows} records instead of {shard.num_rows}")
                self._readers[number] = reader
        return reader

    def _check_size(self, shard: ShardFile) -> None:
        file = self._info.file(shard)
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise self._damaged(shard, "it does not exist") from None
        if size != shard.num_bytes:
            raise self._damaged(shard, f"{size} bytes instead of {shard.num_bytes}")

    def _damaged(self, shard: ShardFile, reason: str) -> UserError:
        return UserError(f"shard {self._info.file(shard)} is damaged ({reason}): {_REBUILD}")


_REBUILD = "delete its folder and run prepare again with the same flags, which builds the same data set"


def _allow_open_files(number: int) -> None:
    """Raise the limit of open files if necessary: each shard's reader keeps its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = number + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
