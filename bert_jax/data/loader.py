"""Load batches of rows: batch k is a function of (seed, k), so the step number is all the state there is.

Row r of global batch k is the same for any number of hosts: a batch is cut into equal shares of rows in order, and a
host reads those that its devices hold.
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

_READER_OPTIONS = "readahead_buffer_size:0"  # rows are read alone, in random order
_SPARE_FILES = 256  # descriptors left to the rest of the program
_MAX_SEED = 1 << 32  # Grain's


class PretrainingBatches:
    """Serve the batches of one split, by number.

    With `shuffle` they go on for ever, each epoch in an order of its own (`len` is not defined). Without, every row
    comes once, and the last batch is filled up with empty rows, whose lengths are 0.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_seq_length: int,
        split: str = "train",
        batch_size: int,
        seed: int,
        shares: Sequence[int] = (0,),
        share_count: int = 1,
        shuffle: bool = True,
    ):
        """Open the data set; `batch_size` is the global one, cut into `share_count` shares of which `shares` are read.

        Raises:
          UserError: no such data set, length or split; shares that do not divide the batch; a shard that is not as it
            was written.
        """
        if batch_size <= 0 or batch_size % share_count:
            raise UserError(
                f"a batch of {batch_size} rows cannot be cut into {share_count} shares: "
                f"choose a multiple of {share_count}"
            )
        self.info = load_dataset_info(directory, max_seq_length=max_seq_length)
        self.num_rows = self.info.num_rows(split)
        if not self.num_rows:
            raise UserError(
                f"data set {directory} has no {split} rows at max_seq_length={max_seq_length}: "
                "make it anew with a larger heldout_fraction, or of more text"
            )
        self._share_size = batch_size // share_count
        self.local_batch_size = self._share_size * len(shares)
        self._num_batches = None if shuffle else -(-self.num_rows // batch_size)
        self._rows = _RowReader(self.info, split)
        self._shares, self._share_count = tuple(shares), share_count
        self._blocks = self._index_blocks(seed % _MAX_SEED)

    def __len__(self) -> int:
        """Return the number of batches of one pass; only without `shuffle`."""
        if self._num_batches is None:
            raise TypeError("shuffled batches have no end; choose how many to take")
        return self._num_batches

    def __getitem__(self, batch: int) -> dict[str, np.ndarray]:
        """Return this host's rows of global batch number `batch`, as `records.decode_rows` names them."""
        return self._rows.read(self.row_indices(batch))

    def row_indices(self, batch: int) -> np.ndarray:
        """Return which rows of the data set this host has in global batch `batch`: [local batch], -1 for empty ones."""
        if batch < 0 or (self._num_batches is not None and batch >= self._num_batches):
            raise IndexError(f"batch {batch} of {self._num_batches}")
        blocks = [self._blocks[batch * self._share_count + share] for share in self._shares]
        return np.concatenate([block for block in blocks if block is not None])  # Grain's type allows for filtered ones

    def iterate(
        self, *, start: int = 0, stop: int | None = None, num_threads: int = 2, prefetch: int = 4
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches from number `start` up to `stop`, reading `prefetch` of them ahead in `num_threads` threads."""
        import grain  # as in `_index_blocks`

        end = sys.maxsize if self._num_batches is None else self._num_batches
        numbers = grain.MapDataset.range(start, end if stop is None else min(stop, end))
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
        return iter(numbers.map(self.__getitem__).to_iter_dataset(options))

    def _index_blocks(self, seed: int) -> "grain.MapDataset[np.ndarray]":
        """Return a Grain data set of blocks of row numbers, a share of a batch each, those of a batch in order."""
        import grain  # imports jax where that is installed, so not before a loader is really wanted

        if self._num_batches is None:
            rows = grain.MapDataset.range(self.num_rows).seed(seed).shuffle().repeat()
        else:
            num_filled = self._num_batches * self._share_size * self._share_count
            rows = grain.MapDataset.range(num_filled).map(lambda row: row if row < self.num_rows else -1)
        return rows.batch(self._share_size, batch_fn=np.asarray)


class _RowReader:
    """Read rows by number from the shards of a split, from several threads at once."""

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
        """Return the rows `numbers` [B]; -1 gives an empty row."""
        wanted = numbers[numbers >= 0].tolist()
        records = [self._read_record(number) for number in wanted]
        spec = self._info.row_spec
        try:
            found = parse_records(records, spec=spec)
        except ValueError as error:
            directory = self._info.file(self._shards[0]).parent
            raise UserError(f"{directory} holds records of another layout ({error}): {_REBUILD}") from None
        rows = np.zeros((len(numbers), spec.num_elements), spec.dtype)
        rows[: len(found)] = found  # empty rows only ever end a batch
        return decode_rows(rows, spec=spec)

    def _read_record(self, number: int) -> bytes:
        shard = bisect.bisect_right(self._ends, number)
        inside = number - self._ends[shard] + self._shards[shard].num_rows
        reader = self._readers[shard] or self._open(shard)
        try:
            # A range of one: reading a list of numbers costs time in proportion to the whole file.
            return reader.read(inside, inside + 1)[0]
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
                    raise self._damaged(shard, f"{num_rows} rows instead of {shard.num_rows}")
                self._readers[number] = reader
        return reader

    def _check_size(self, shard: ShardFile) -> None:
        file = self._info.file(shard)
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise self._damaged(shard, "it is not there") from None
        if size != shard.num_bytes:
            raise self._damaged(shard, f"{size} bytes instead of {shard.num_bytes}")

    def _damaged(self, shard: ShardFile, reason: str) -> UserError:
        return UserError(f"shard {self._info.file(shard)} is damaged ({reason}): {_REBUILD}")


_REBUILD = "delete the folder it is in and run prepare again with the same flags, which makes the same rows"


def _allow_open_files(number: int) -> None:
    """Raise the limit of open files where the shards would exceed it; a reader keeps its file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
