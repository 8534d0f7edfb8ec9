"""Take packed rows apart: each instance in a row of its own, with the masks it had, for comparison."""

import jax
import numpy as np
from tiny_model import instance_spans

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
                PretrainingBatch(
                    inputs=EncoderInputs(
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
