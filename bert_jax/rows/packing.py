"""Pack instances of many lengths into rows of one length, whole: a pure function of the lengths.

Best-fit decreasing: the longest instance first, each into the row that it leaves the least room in, a new row where
none has room. It needs at most 11/9 of the fewest rows possible, plus one (Johnson 1973); on English prose at 512 it
leaves 0.3 % of the positions empty (benchmarks/RESULTS.md). A row holds a bounded number of instances, because the
shapes on the device are static.

Instances are made as they would be for rows of their own, whatever the recipe: packing moves them and changes none.
"""

import dataclasses
import random

import numpy as np


@dataclasses.dataclass(frozen=True)
class Placement:
    """Say where instances stand: `rows`, `slots` and `starts` have an entry each, [I].

    Instance i is number `slots[i]` of row `rows[i]`, and its first token stands at position `starts[i]`.
    """

    rows: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    num_rows: int


def one_a_row(count: int) -> Placement:
    """Return the placement of `count` instances that have a row each, in their order."""
    nothing = np.zeros(count, np.int64)
    return Placement(rows=np.arange(count), slots=nothing, starts=nothing, num_rows=count)


def place_packed(lengths: np.ndarray, *, max_seq_length: int, instances_per_row: int, rng: random.Random) -> Placement:
    """Return the placement that `best_fit` finds, its rows in a random order.

    They come out longest instance first; in that order the first rows of a split, which evaluation takes, would be
    unlike the others.
    """
    packed = best_fit(lengths, max_seq_length=max_seq_length, instances_per_row=instances_per_row)
    rng.shuffle(packed)
    rows, slots, starts = (np.zeros(len(lengths), np.int64) for _ in range(3))
    for number, row in enumerate(packed):
        rows[row] = number
        slots[row] = np.arange(len(row))
        starts[row] = np.cumsum(lengths[row]) - lengths[row]
    return Placement(rows=rows, slots=slots, starts=starts, num_rows=len(packed))


def best_fit(lengths: np.ndarray, *, max_seq_length: int, instances_per_row: int) -> list[list[int]]:
    """Return the numbers of the instances in each row; `lengths` [I] count special tokens.

    Raises:
      ValueError: if an instance is longer than a row.
    """
    if len(lengths) and lengths.max() > max_seq_length:
        raise ValueError(f"an instance of {lengths.max()} tokens is longer than a row of {max_seq_length}")
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(max_seq_length + 1)]  # numbers of rows by the room left in them
    rooms = 0  # bit r is set where open_rows[r] is not empty: the search for a row is then one operation
    for instance in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[instance])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, number = max_seq_length, len(rows)
            rows.append([])
        rows[number].append(instance)
        if len(rows[number]) < instances_per_row and room > length:
            open_rows[room - length].append(number)
            rooms |= 1 << room - length
    return rows
