"""Pack whole instances of many lengths into sequences of one length: a pure function of the lengths.

Best-fit decreasing: take the longest instance first and put it into the sequence with the least sufficient free space,
or into a new sequence. It needs at most 11/9 of the optimal number of sequences, plus one (Johnson 1973); on English
prose at 512 it leaves 0.3 % of the positions empty (benchmarks/RESULTS.md). The number of instances per sequence is
bounded, because shapes on the device are static.

Pre-training packs each shard once, fine-tuning each batch. Packing moves instances and does not change them.
"""

import dataclasses
import random

import numpy as np


@dataclasses.dataclass(frozen=True)
class Placement:
    """The position of every instance: `rows`, `slots` and `starts` have one entry per instance, [I].

    Instance i is number `slots[i]` in sequence `rows[i]`; its first token is at position `starts[i]`.
    """

    rows: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    num_rows: int

    def shuffled(self, rng: random.Random) -> "Placement":
        """Return the same sequences in a random order."""
        order = list(range(self.num_rows))
        rng.shuffle(order)
        numbers = np.empty(self.num_rows, np.int64)
        numbers[order] = np.arange(self.num_rows)
        return dataclasses.replace(self, rows=numbers[self.rows])


def one_per_row(count: int) -> Placement:
    """Return the placement of `count` instances in order, one per sequence."""
    zeros = np.zeros(count, np.int64)
    return Placement(rows=np.arange(count), slots=zeros, starts=zeros, num_rows=count)


def best_fit(lengths: np.ndarray, *, max_seq_length: int, instances_per_row: int) -> Placement:
    """Return the placement of instances of `lengths` [I], special tokens counted.

    Sequences are numbered in order of creation, so the longest instances come first. Ties: among instances of equal
    length the first one goes first; among sequences with equal free space the one filled last is used.

    Raises:
      ValueError: if an instance is longer than `max_seq_length`.
    """
    if len(lengths) and lengths.max() > max_seq_length:
        raise ValueError(f"an instance of {lengths.max()} tokens is longer than max_seq_length={max_seq_length}")
    order = np.argsort(-lengths, kind="stable")
    rows, slots, starts = [], [], []  # in the order of `order`
    counts: list[int] = []  # instances in each sequence
    open_rows: list[list[int]] = [[] for _ in range(max_seq_length + 1)]  # sequences by free space
    free_bits = 0  # bit r is set if open_rows[r] is not empty: finding a sequence is one operation
    for length in lengths[order].tolist():
        fitting = free_bits >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                free_bits ^= 1 << free
        else:
            free, row = max_seq_length, len(counts)
            counts.append(0)
        rows.append(row)
        slots.append(counts[row])
        starts.append(max_seq_length - free)
        counts[row] += 1
        if counts[row] < instances_per_row and free > length:
            open_rows[free - length].append(row)
            free_bits |= 1 << free - length
    table = np.empty((3, len(lengths)), np.int64)
    table[:, order] = rows, slots, starts
    return Placement(rows=table[0], slots=table[1], starts=table[2], num_rows=len(counts))


def token_positions(firsts: np.ndarray, *, lengths: np.ndarray) -> np.ndarray:
    """Return the positions of all tokens of instances with `lengths` [I], concatenated, [sum of lengths].

    `firsts` [I] are the positions of the first tokens.
    """
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(firsts - before, lengths)
