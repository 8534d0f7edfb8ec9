"""Pack instances of many lengths into rows of one length, whole: a pure function of the lengths.

Best-fit decreasing: the longest instance first, each into the row that it leaves the least room in, a new row where
none has room. It needs at most 11/9 of the fewest rows possible, plus one (Johnson 1973); on English prose at 512 it
leaves 0.3 % of the positions empty (benchmarks/RESULTS.md). A row holds a bounded number of instances, because the
shapes on the device are static.

Pre-training packs a shard once, fine-tuning every batch. Packing moves instances and changes none.
"""

import dataclasses
import random

import numpy as np


@dataclasses.dataclass(frozen=True)
class Placement:
    """The position of every instance: `rows`, `slots` and `starts` have one entry per instance, [I].

    Instance i is number `slots[i]` of row `rows[i]`, and its first token is at position `starts[i]`.
    """

    rows: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    num_rows: int

    def shuffled(self, rng: random.Random) -> "Placement":
        """Return the same rows in a random order."""
        order = list(range(self.num_rows))
        rng.shuffle(order)
        numbers = np.empty(self.num_rows, np.int64)
        numbers[order] = np.arange(self.num_rows)
        return dataclasses.replace(self, rows=numbers[self.rows])


def one_per_row(count: int) -> Placement:
    """Return the placement of `count` instances that have a row each, in their order."""
    zeros = np.zeros(count, np.int64)
    return Placement(rows=np.arange(count), slots=zeros, starts=zeros, num_rows=count)


def best_fit(lengths: np.ndarray, *, max_seq_length: int, instances_per_row: int) -> Placement:
    """Return the placement of instances of `lengths` [I], special tokens counted.

    Rows are numbered in the order in which they are begun: those of the longest instances first. Of equally long
    instances the first one comes first; of rows with equal room, the one that was filled last.

    Raises:
      ValueError: if an instance is longer than a row.
    """
    if len(lengths) and lengths.max() > max_seq_length:
        raise ValueError(f"an instance of {lengths.max()} tokens is longer than a row of {max_seq_length}")
    order = np.argsort(-lengths, kind="stable")
    rows, slots, starts = [], [], []  # in that order
    counts: list[int] = []  # of the instances in each row
    open_rows: list[list[int]] = [[] for _ in range(max_seq_length + 1)]  # numbers of rows by the room left in them
    rooms = 0  # bit r is set where open_rows[r] is not empty: the search for a row is then one operation
    for length in lengths[order].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = max_seq_length, len(counts)
            counts.append(0)
        rows.append(row)
        slots.append(counts[row])
        starts.append(max_seq_length - room)
        counts[row] += 1
        if counts[row] < instances_per_row and room > length:
            open_rows[room - length].append(row)
            rooms |= 1 << room - length
    table = np.empty((3, len(lengths)), np.int64)
    table[:, order] = rows, slots, starts
    return Placement(rows=table[0], slots=table[1], starts=table[2], num_rows=len(counts))


def token_positions(firsts: np.ndarray, *, lengths: np.ndarray) -> np.ndarray:
    """Return the positions of all tokens of instances of `lengths` [I], one instance after the other, [sum].

    `firsts` [I] are the positions of their first tokens.
    """
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(firsts - before, lengths)
