"""Packed rows for comparison: packed slowly, read back, and each instance in a row of its own."""

import jax
import numpy as np
from tiny_model import instance_spans, on_host

from bert_jax.rows.packing import Placement
from bert_jax.types import EncoderInputs, PretrainingBatch, Rows


def instances_alone(rows: Rows, batch: PretrainingBatch) -> PretrainingBatch:
    """Return a batch with a row for each instance of `batch`, which is `rows` masked, in their order; on the host."""
    length = np.asarray(rows.input_ids).shape[1]
    place = np.arange(length, dtype=np.int32)
    parts = []
    for row in range(len(rows.input_ids)):
        for number, (begin, middle, end) in enumerate(instance_spans(rows, row)):
            inside = place < end - begin
            here = (batch.weights[row] > 0) & (batch.positions[row] >= begin) & (batch.positions[row] < end)
            ids = np.zeros(length, np.int32)
            ids[inside] = batch.inputs.input_ids[row, begin:end]
            parts.append(
                on_host(
                    PretrainingBatch,
                    inputs=on_host(
                        EncoderInputs,
                        input_ids=ids,
                        token_type_ids=(inside & (place >= middle - begin)).astype(np.int32),
                        position_ids=place,
                        segment_ids=inside.astype(np.int32),
                    ),
                    rows=np.int32(len(parts)),
                    positions=np.where(here, batch.positions[row] - begin, 0).astype(np.int32),
                    labels=batch.labels[row],
                    weights=here.astype(np.float32),
                    cls_positions=np.zeros(1, np.int32),
                    next_sentence_labels=batch.next_sentence_labels[row, number : number + 1],
                    next_sentence_weights=np.ones(1, np.float32),
                )
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def instances_in_rows(placed: Placement) -> list[list[int]]:
    """Return the numbers of the instances in each row, in their order."""
    rows = [[] for _ in range(placed.num_rows)]
    for instance in np.lexsort((placed.slots, placed.rows)).tolist():
        rows[placed.rows[instance]].append(instance)
    return rows


def rows_of_a_linear_scan(lengths: list[int], *, max_seq_length: int, per_row: int) -> list[list[int]]:
    """Return the rows of best-fit decreasing, found without any index: what data sets and metrics were made with.

    Of equally long instances the first comes first; of rows with equal room, the one that was filled last.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(max_seq_length + 1)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[index]
        left = next((space for space in range(size, max_seq_length + 1) if open_rows[space]), None)
        if left is None:
            rows.append([])
            number, left = len(rows) - 1, max_seq_length
        else:
            number = open_rows[left].pop()
        rows[number].append(index)
        if len(rows[number]) < per_row:
            open_rows[left - size].append(number)
    return rows
