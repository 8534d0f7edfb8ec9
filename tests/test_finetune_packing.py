"""Packing loses no example, mixes none, and keeps the shapes few."""

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.finetuning.packing import RowShape, all_batches, pack, packed_batch, round_rows, row_shape
from bert_jax.tasks.interface import Features
from tests.test_task_heads import random_features, sized


def test_every_example_stands_once_and_no_row_overflows():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        shape = RowShape(length=64, slots=int(rng.integers(1, 9)), group=1)
        lengths = rng.integers(3, 65, size=int(rng.integers(1, 200)))
        rows = pack(lengths, shape=shape).rows
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(lengths[row].sum() <= shape.length for row in rows)
        assert all(len(row) <= shape.slots for row in rows)


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(10, 100, size=2000)
    rows = pack(lengths, shape=RowShape(length=128, slots=16, group=1)).rows
    assert lengths.sum() / (128 * len(rows)) > 0.93


def test_rows_hold_the_instances_and_their_targets():
    features = random_features("span", examples=12)
    shape = RowShape(length=64, slots=4, group=1)
    seen = []
    for batch in all_batches(features, shape=shape, kind=sized("span"), rows=3):
        assert batch.arrays["input_ids"].shape == (3, 64)
        for b, row in enumerate(batch.order):
            place = 0
            for slot, example in enumerate(row):
                first, second = batch.arrays["segment_lengths"][b, slot]
                assert batch.arrays["weights"][b, slot] == (example >= 0)
                if example < 0:
                    assert first + second == 0
                    continue
                ids = features.ids[example]
                np.testing.assert_array_equal(batch.arrays["input_ids"][b, place : place + len(ids)], ids)
                assert (first, first + second) == (features.first_lengths[example], len(ids))
                assert features.targets is not None
                np.testing.assert_array_equal(
                    batch.arrays["targets"][b, slot], np.array(features.targets[example]) + place
                )
                place += len(ids)
                seen.append(example)
    assert sorted(seen) == list(range(12))


def test_choices_of_an_example_stand_side_by_side():
    features = random_features("choice", examples=6)
    shape = row_shape([features], batch_size=6)
    assert shape.slots % 4 == 0
    batch = packed_batch(features, range(6), shape=shape, kind=sized("choice"))
    for b, row in enumerate(batch.order):
        for slot, example in enumerate(row):
            if example >= 0:
                sizes = batch.arrays["segment_lengths"][b, slot * 4 : slot * 4 + 4].sum(-1)
                assert sizes.tolist() == [len(features.ids[example * 4 + c]) for c in range(4)]


def test_numbers_of_rows_are_few_close_and_divide_over_devices():
    for devices in (1, 3, 8):
        sizes = [round_rows(count, multiple=devices) for count in range(1, 1025)]
        assert all(size >= count and size % devices == 0 for count, size in enumerate(sizes, start=1))
        assert all(size <= count * 9 / 8 + devices for count, size in enumerate(sizes, start=1))
        assert len(set(sizes)) <= 80


def test_row_length_follows_the_data_and_not_the_limit():
    short = Features([np.ones(7, np.int32), np.ones(20, np.int32)], np.array([7, 20], np.int32), [0, 1])
    assert row_shape([short], batch_size=32).length == 32


def test_an_example_longer_than_a_row_is_one_line():
    features = random_features("tags", examples=4)
    with pytest.raises(UserError, match="longer than a row of 4"):
        packed_batch(features, [0, 1], shape=RowShape(4, 1, 1), kind=sized("tags"))
