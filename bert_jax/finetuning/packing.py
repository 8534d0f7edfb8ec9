"""Put instances of many lengths into rows of one length, so that short inputs cost short computation.

The examples of a batch are chosen at random and only then packed: which examples are learned from together does not
depend on their lengths. Several instances share a row and do not see each other (`segment_ids` in the encoder), so each
gets what it would get alone. The number of rows is rounded up to one of few sizes, each compiled once.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind
from bert_jax.rows.packing import Placement, best_fit, token_positions
from bert_jax.tasks.interface import Instances

_ROUND_LENGTH = 32  # row lengths are multiples of it: few shapes, and whole vectors on every device


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The static shape of a row: T positions for at most S instances, `group` of them per example."""

    length: int
    slots: int
    group: int

    @property
    def examples(self) -> int:
        """Return the most examples that a row holds, E."""
        return self.slots // self.group


def row_shape(features: Sequence[Instances], *, batch_size: int) -> RowShape:
    """Return the shape that holds every example of `features` and packs batches of `batch_size` well.

    Rows are as long as the longest example; slots suffice for rows of twice as many instances as rows of mean length
    hold.
    """
    lengths = np.concatenate([split.lengths for split in features])
    group = features[0].group
    length = -(-int(lengths.max()) // _ROUND_LENGTH) * _ROUND_LENGTH
    desired = 2 * length / max(float(lengths.mean()), 1.0)
    most = length // max(int(lengths.min()), 1)
    return RowShape(length, slots=group * max(1, min(int(np.ceil(desired)), most, batch_size)), group=group)


def round_rows(count: int, *, multiple: int) -> int:
    """Return the next size for a number of rows: eighths of a power of two, a multiple of the devices that share rows.

    At most one row in nine is padding, and batches of like size share a compiled step.
    """
    step = max(1, 1 << max(count.bit_length() - 4, 0))
    rounded = -(-count // step) * step
    return -(-rounded // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Rows on the host.

    The arrays are those of `objective.PackedRows`; `order[b, e]` is the number of the example in that slot, or -1.
    """

    arrays: dict[str, np.ndarray]
    order: np.ndarray


def packed_batch(
    features: Instances, examples: Sequence[int], *, shape: RowShape, kind: OutputKind, rows: int = 0, multiple: int = 1
) -> PackedBatch:
    """Return the rows that hold `examples`; `rows` of them, or as few as they need.

    Raises:
      UserError: if an example is longer than a row.
    """
    chosen = np.asarray(examples, np.int64)
    lengths = features.lengths[chosen]
    if len(lengths) and lengths.max() > shape.length:
        raise UserError(f"an example of {lengths.max()} tokens is longer than a row of {shape.length}")
    placement = best_fit(lengths, max_seq_length=shape.length, instances_per_row=shape.examples)
    count = rows or round_rows(placement.num_rows, multiple=multiple)
    return _fill(features, chosen, dataclasses.replace(placement, num_rows=count), shape=shape, kind=kind)


def all_batches(features: Instances, *, shape: RowShape, kind: OutputKind, rows: int) -> Iterator[PackedBatch]:
    """Yield batches of `rows` rows that hold every example once, the longest first: for evaluation."""
    placement = best_fit(features.lengths, max_seq_length=shape.length, instances_per_row=shape.examples)
    by_row = np.argsort(placement.rows, kind="stable")
    bounds = np.searchsorted(placement.rows[by_row], np.arange(0, placement.num_rows + rows, rows))
    for batch, (start, end) in enumerate(itertools.pairwise(bounds)):
        chosen = by_row[start:end]
        part = Placement(placement.rows[chosen] - batch * rows, placement.slots[chosen], placement.starts[chosen], rows)
        yield _fill(features, chosen, part, shape=shape, kind=kind)


def _fill(
    features: Instances, examples: np.ndarray, placement: Placement, *, shape: RowShape, kind: OutputKind
) -> PackedBatch:
    """Return the rows of `placement`, which has an entry for each of `examples`."""
    count, where = placement.num_rows, (placement.rows, placement.slots)
    instances = (examples[:, None] * shape.group + np.arange(shape.group)).ravel()
    lengths = features.instance_lengths[examples]
    ids = np.zeros((count, shape.length), np.int32)
    tokens = token_positions(placement.rows * shape.length + placement.starts, lengths=lengths.sum(1))
    ids.reshape(-1)[tokens] = np.concatenate([features.ids[i] for i in instances])
    first = features.first_lengths[instances].reshape(lengths.shape)
    segments = np.zeros((count, shape.examples, shape.group, 2), np.int32)
    segments[where] = np.stack([first, lengths - first], axis=-1)
    order = np.full((count, shape.examples), -1, np.int64)
    order[where] = examples
    targets = kind.empty_targets(rows=count, length=shape.length, examples=shape.examples)
    if features.targets is not None:
        kind.set_targets(targets, [features.targets[example] for example in examples], placement=placement)
    arrays = {
        "input_ids": ids,
        "segment_lengths": segments.reshape(count, shape.slots, 2),
        "weights": (order >= 0).astype(np.float32),
        "targets": targets,
    }
    return PackedBatch(arrays, order)
