"""Unfolding rows: a slow transcript of what a row means."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tiny_model import instance_spans, random_rows, to_device

from bert_jax.rows.layout import cls_positions, encoder_inputs, instance_starts
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.types import InstanceRows

ROOT = Path(__file__).resolve().parents[1]


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


def test_positions_of_rows_longer_than_the_models_table_are_in_the_table() -> None:
    rows = to_device(random_rows(0, batch=64, length=40, instances=4, empty_rows=3))
    plain, at_zero = encoder_inputs(rows), encoder_inputs(rows, padding_at_zero=True)
    inside = np.asarray(plain.segment_ids) > 0
    np.testing.assert_array_equal(at_zero.position_ids, np.where(inside, plain.position_ids, 0))
    np.testing.assert_array_equal(at_zero.segment_ids, plain.segment_ids)
    assert int(at_zero.position_ids.max()) < int(rows.segment_lengths.sum(-1).max()) < 40


def test_heads_of_empty_instances_gather_at_the_first_position() -> None:
    rows = random_rows(3, batch=32, length=40, instances=3, empty_rows=2)
    found = np.asarray(cls_positions(to_device(rows)))
    for row in range(32):
        begins = [begin for begin, _, _ in instance_spans(rows, row)]
        assert found[row].tolist() == begins + [0] * (3 - len(begins))


def test_a_framed_pair_is_laid_out_as_two_segments() -> None:
    special = SpecialIds(cls_id=2, sep_id=3, mask_id=4, pad_id=0, vocab_size=50)
    ids, first = special.frame([10, 11], [12])
    assert (ids, first) == ([2, 10, 11, 3, 12, 3], 4)
    assert special.frame([10]) == ([2, 10, 3], 3)
    rows = InstanceRows(jnp.asarray([[*ids, 0]]), jnp.asarray([[[first, len(ids) - first]]]))
    inputs = encoder_inputs(rows)
    assert inputs.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 0]]
    assert inputs.segment_ids.tolist() == [[1, 1, 1, 1, 1, 1, 0]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_what_data_workers_import_of_rows_loads_no_jax() -> None:
    """A data set is built by many processes: jax would cost each of them a second and 100 MB."""
    modules = "bert_jax.rows.packing, bert_jax.rows.truncation, bert_jax.rows.special_ids"
    code = f"import sys, {modules}; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "False\n"
