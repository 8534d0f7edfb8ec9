"""Unfolding rows: a slow transcript of what a row means."""

import numpy as np
from tiny_model import instance_spans, random_rows, to_device

from bert_jax.rows.layout import encoder_inputs, instance_starts


def test_encoder_inputs_equal_a_slow_transcript() -> None:
    rows = random_rows(0, batch=128, length=40, instances=4, empty_rows=3)
    inputs = encoder_inputs(to_device(rows))
    types, segments = np.zeros((128, 40), int), np.zeros((128, 40), int)
    positions = np.tile(np.arange(40), (128, 1))
    for row in range(128):
        for number, (begin, middle, end) in enumerate(instance_spans(rows, row), start=1):
            for place in range(begin, end):
                types[row, place] = place >= middle
                segments[row, place] = number
                positions[row, place] = place - begin
    np.testing.assert_array_equal(inputs.input_ids, rows.input_ids)
    np.testing.assert_array_equal(inputs.token_type_ids, types)
    np.testing.assert_array_equal(inputs.segment_ids, segments)
    np.testing.assert_array_equal(inputs.position_ids, positions)


def test_instances_start_where_the_one_before_ends() -> None:
    rows = random_rows(2, batch=32, length=40, instances=3)
    starts = np.asarray(instance_starts(to_device(rows)))
    for row in range(32):
        spans = instance_spans(rows, row)
        assert list(starts[row, : len(spans)]) == [begin for begin, _, _ in spans]
