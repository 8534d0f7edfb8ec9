"""Sequence packing: several instances of different lengths in each sequence of fixed length, to avoid padding.

* The examples of a batch are sampled first and packed afterwards, so batches do not depend on lengths.
* Instances in a sequence do not attend to each other (`segment_ids` in the encoder), so each has the output that it
  would have alone.
* The number of sequences is rounded up to one of a few sizes. Each size is compiled once.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from bert_jax.errors import UserError
from bert_jax.kinds.base import OutputKind
from bert_jax.rows.packing import Placement, best_fit, token_positions
from bert_jax.tasks.interface import Instances

_ROUND_LENGTH = 32  # sequence lengths are multiples of it: few shapes, and whole vectors on every device


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The static shape of a sequence: T positions, at most S instances, `group` of them per example."""

    length: int
    slots: int
    group: int

    @property
    def examples(self) -> int:
        """Return the maximum number of examples per sequence, E."""
        return self.slots // self.group


def row_shape(features: Sequence[Instances], *, batch_size: int) -> RowShape:
    """Return a shape that fits every example of `features` and packs batches of `batch_size` well.

    A sequence is as long as the longest example. Its slots suffice for twice as many instances as fit on average.
    """
    lengths = np.concatenate([split.lengths for split in features])
    group = features[0].group
    length = -(-int(lengths.max()) // _ROUND_LENGTH) * _ROUND_LENGTH
    desired = 2 * length / max(float(lengths.mean()), 1.0)
    limit = length // max(int(lengths.min()), 1)
    return RowShape(length, slots=group * max(1, min(int(np.ceil(desired)), limit, batch_size)), group=group)


def round_rows(count: int, *, multiple: int) -> int:
    """Round a number of sequences up to eighths of a power of two, and to a multiple of `multiple`.

    At most one sequence in nine is padding, and batches of similar size share a compiled step.
    """
    step = max(1, 1 << max(count.bit_length() - 4, 0))
    rounded = -(-count // step) * step
    return -(-rounded // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """A packed batch in host memory."""

    arrays: dict[str, np.ndarray]  # the fields of `objective.PackedRows`
    order: np.ndarray  # [B, E], the index of the example in each slot, or -1


def packed_batch(
    features: Instances, examples: Sequence[int], *, shape: RowShape, kind: OutputKind, rows: int = 0, multiple: int = 1
) -> PackedBatch:
    """Pack `examples` into `rows` sequences, or into as few as possible.

    Raises:
      UserError: if an example is longer than a sequence.
    """
    indices = np.asarray(examples, np.int64)
    lengths = features.lengths[indices]
    if len(lengths) and lengths.max() > shape.length:
        raise UserError(f"an example of {lengths.max()} tokens is longer than a sequence of {shape.length}")
    placement = best_fit(lengths, max_seq_length=shape.length, instances_per_row=shape.examples)
    count = rows or round_rows(placement.num_rows, multiple=multiple)
    return _fill(features, indices, dataclasses.replace(placement, num_rows=count), shape=shape, kind=kind)


def all_batches(features: Instances, *, shape: RowShape, kind: OutputKind, rows: int) -> Iterator[PackedBatch]:
    """Yield batches of `rows` sequences that contain each example once, the longest first, for evaluation."""
    placement = best_fit(features.lengths, max_seq_length=shape.length, instances_per_row=shape.examples)
    by_row = np.argsort(placement.rows, kind="stable")
    bounds = np.searchsorted(placement.rows[by_row], np.arange(0, placement.num_rows + rows, rows))
    for batch, (start, end) in enumerate(itertools.pairwise(bounds)):
        indices = by_row[start:end]
        part = Placement(
            placement.rows[indices] - batch * rows, placement.slots[indices], placement.starts[indices], rows
        )
        yield _fill(features, indices, part, shape=shape, kind=kind)


def _fill(
    features: Instances, examples: np.ndarray, placement: Placement, *, shape: RowShape, kind: OutputKind
) -> PackedBatch:
    """Return the batch described by `placement`, which has an entry for each of `examples`."""
    count, slots = placement.num_rows, (placement.rows, placement.slots)
    instances = (examples[:, None] * shape.group + np.arange(shape.group)).ravel()
    lengths = features.instance_lengths[examples]
    ids = np.zeros((count, shape.length), np.int32)
    tokens = token_positions(placement.rows * shape.length + placement.starts, lengths=lengths.sum(1))
    ids.reshape(-1)[tokens] = np.concatenate([features.ids[i] for i in instances])
    first = features.first_lengths[instances].reshape(lengths.shape)
    segments = np.zeros((count, shape.examples, shape.group, 2), np.int32)
    segments[slots] = np.stack([first, lengths - first], axis=-1)
    order = np.full((count, shape.examples), -1, np.int64)
    order[slots] = examples
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
