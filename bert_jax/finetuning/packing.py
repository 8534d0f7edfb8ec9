"""Put instances of many lengths into rows of one length, so that short inputs cost short computation.

A batch is drawn at random, as ever, and only then packed: which examples are learned from together does not depend on
their lengths. Several instances share a row and do not see each other (`segment_ids` in the encoder), so each gets what
it would get alone. The number of rows is rounded up to one of few sizes, each compiled once.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind
from bert_jax.tasks.interface import Features

_ROUND_LENGTH = 32  # row lengths are multiples of it: few shapes, and whole vectors on every device


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Hold the static shape of a row: T positions for at most S instances, `group` of them an example."""

    length: int
    slots: int
    group: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """Say which examples stand in each row, one after the other."""

    rows: list[list[int]]


def row_shape(features: Sequence[Features], *, batch_size: int) -> RowShape:
    """Return the shape that holds every example of `features` and packs batches of `batch_size` well.

    Rows are as long as the longest example; slots suffice for rows of twice as many instances as rows of mean length
    hold.
    """
    lengths = np.concatenate([split.lengths for split in features])
    group = features[0].group
    length = -(-int(lengths.max()) // _ROUND_LENGTH) * _ROUND_LENGTH
    wanted = 2 * length / max(float(lengths.mean()), 1.0)
    most = length // max(int(lengths.min()), 1)
    return RowShape(length, slots=group * max(1, min(int(np.ceil(wanted)), most, batch_size)), group=group)


def pack(lengths: np.ndarray, *, shape: RowShape) -> Placement:
    """Put examples into as few rows as best-fit decreasing finds; a pure function of the lengths."""
    limit = shape.slots // shape.group
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(shape.length + 1)]  # numbers of rows by what is left in them
    for index in np.argsort(-lengths, kind="stable"):
        size = int(lengths[index])
        left = next((space for space in range(size, shape.length + 1) if open_rows[space]), None)
        if left is None:
            rows.append([])
            number, left = len(rows) - 1, shape.length
        else:
            number = open_rows[left].pop()
        rows[number].append(int(index))
        if len(rows[number]) < limit:
            open_rows[left - size].append(number)
    return Placement(rows)


def round_rows(count: int, *, multiple: int) -> int:
    """Return the next size for a number of rows: eighths of a power of two, a multiple of the devices that share rows.

    At most one row in nine is padding, and batches of like size share a compiled step.
    """
    step = max(1, 1 << max(count.bit_length() - 4, 0))
    rounded = -(-count // step) * step
    return -(-rounded // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Hold rows on the host.

    The arrays are those of `objective.PackedRows`; `order[b, e]` is the number of the example that stands there, or -1.
    """

    arrays: dict[str, np.ndarray]
    order: np.ndarray


def packed_batch(
    features: Features, examples: Sequence[int], *, shape: RowShape, kind: OutputKind, rows: int = 0, multiple: int = 1
) -> PackedBatch:
    """Return the rows that hold `examples`; `rows` of them, or as few as they need.

    Raises:
      UserError: if an example is longer than a row.
    """
    chosen = np.asarray(examples, np.int64)
    lengths = features.lengths[chosen]
    if len(lengths) and lengths.max() > shape.length:
        raise UserError(f"an example of {lengths.max()} tokens is longer than a row of {shape.length}")
    placement = pack(lengths, shape=shape)
    count = rows or round_rows(len(placement.rows), multiple=multiple)
    return _fill(features, [[int(chosen[i]) for i in row] for row in placement.rows], count, shape=shape, kind=kind)


def all_batches(features: Features, *, shape: RowShape, kind: OutputKind, rows: int) -> Iterator[PackedBatch]:
    """Yield batches of `rows` rows that hold every example once, the longest first: for evaluation."""
    placement = pack(features.lengths, shape=shape)
    for start in range(0, len(placement.rows), rows):
        yield _fill(features, placement.rows[start : start + rows], rows, shape=shape, kind=kind)


def _fill(
    features: Features, rows: Sequence[Sequence[int]], count: int, *, shape: RowShape, kind: OutputKind
) -> PackedBatch:
    group, per_row = shape.group, shape.slots // shape.group
    ids = np.zeros((count, shape.length), np.int32)
    segments = np.zeros((count, shape.slots, 2), np.int32)
    order = np.full((count, per_row), -1, np.int64)
    placed: list[tuple[int, int, int, int]] = []  # example, row, slot, first position
    for b, row in enumerate(rows):
        place = 0
        for slot, example in enumerate(row):
            order[b, slot] = example
            placed.append((example, b, slot, place))
            for choice in range(group):
                instance = features.ids[example * group + choice]
                first = int(features.first_lengths[example * group + choice])
                ids[b, place : place + len(instance)] = instance
                segments[b, slot * group + choice] = first, len(instance) - first
                place += len(instance)
    targets = kind.empty_targets(rows=count, length=shape.length, examples=per_row)
    if features.targets is not None and placed:
        examples, rows_of, slots, starts = np.array(placed, np.int64).T
        values = [features.targets[example] for example in examples]
        kind.set_targets(targets, values, rows=rows_of, slots=slots, starts=starts)
    arrays = {"input_ids": ids, "segment_lengths": segments, "weights": (order >= 0).astype(np.float32)}
    return PackedBatch({**arrays, "targets": targets}, order)
