"""Packing loses no example, mixes none, and keeps the shapes few."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.finetuning.packing import (
    PackedBatch,
    RowShape,
    all_batches,
    packed_batch,
    round_rows,
    row_shape,
)
from bert_jax.rows.packing import best_fit
from bert_jax.tasks.interface import Instances
from tests.packed_rows import instances_in_rows, rows_of_a_linear_scan
from tests.test_task_heads import KINDS, random_features, sized


def test_every_example_stands_once_and_no_row_overflows():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        shape = RowShape(length=64, slots=int(rng.integers(1, 9)), group=1)
        lengths = rng.integers(3, 65, size=int(rng.integers(1, 200)))
        placed = best_fit(lengths, max_seq_length=shape.length, instances_per_row=shape.examples)
        rows = instances_in_rows(placed)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(lengths[row].sum() <= shape.length for row in rows)
        assert all(len(row) <= shape.slots for row in rows)


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(10, 100, size=2000)
    placed = best_fit(lengths, max_seq_length=128, instances_per_row=16)
    assert lengths.sum() / (128 * placed.num_rows) > 0.93


def filled_one_by_one(
    features: Instances, rows: list[list[int]], count: int, *, shape: RowShape, kind: str
) -> dict[str, np.ndarray]:
    """Return the arrays of `rows`, written instance by instance and target by target."""
    ids = np.zeros((count, shape.length), np.int32)
    segments = np.zeros((count, shape.slots, 2), np.int32)
    order = np.full((count, shape.examples), -1, np.int64)
    targets = sized(kind).empty_targets(rows=count, length=shape.length, examples=shape.examples)
    for b, row in enumerate(rows):
        place = 0
        for slot, example in enumerate(row):
            order[b, slot] = example
            if features.targets is not None:
                value = features.targets[example]
                if kind == "tags":
                    targets[b, place : place + len(value)] = value
                else:
                    targets[b, slot] = np.asarray(value) + place if kind == "span" else value
            for choice in range(shape.group):
                instance = features.ids[example * shape.group + choice]
                first = int(features.first_lengths[example * shape.group + choice])
                ids[b, place : place + len(instance)] = instance
                segments[b, slot * shape.group + choice] = first, len(instance) - first
                place += len(instance)
    weights = (order >= 0).astype(np.float32)
    return {"input_ids": ids, "segment_lengths": segments, "weights": weights, "targets": targets, "order": order}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_batches_equal_rows_filled_one_by_one(kind: str, seed: int, examples: int, per_row: int, labeled: bool):
    features = random_features(kind, seed=seed, examples=examples)
    if not labeled:
        features = dataclasses.replace(features, targets=None)
    shape = RowShape(length=96, slots=per_row * features.group, group=features.group)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(examples)[: int(rng.integers(1, examples + 1))]
    limits = {"max_seq_length": shape.length, "per_row": per_row}

    def check(batch: PackedBatch, rows: list[list[int]]) -> None:
        expected = filled_one_by_one(features, rows, len(batch.order), shape=shape, kind=kind)
        for name, array in {**batch.arrays, "order": batch.order}.items():
            np.testing.assert_array_equal(array, expected[name], strict=True)

    rows = rows_of_a_linear_scan(features.lengths[chosen].tolist(), **limits)
    batch = packed_batch(features, chosen.tolist(), shape=shape, kind=sized(kind), multiple=2)
    assert len(batch.order) == round_rows(len(rows), multiple=2)
    check(batch, [[int(chosen[i]) for i in row] for row in rows])
    rows = rows_of_a_linear_scan(features.lengths.tolist(), **limits)
    batches = list(all_batches(features, shape=shape, kind=sized(kind), rows=3))
    assert len(batches) == -(-len(rows) // 3)
    for number, batch in enumerate(batches):
        check(batch, rows[3 * number : 3 * number + 3])


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
    seen = []
    for b, row in enumerate(batch.order):
        for slot, example in enumerate(row):
            if example >= 0:
                seen.append(example)
                sizes = batch.arrays["segment_lengths"][b, slot * 4 : slot * 4 + 4].sum(-1)
                assert sizes.tolist() == [len(features.ids[example * 4 + c]) for c in range(4)]
    assert sorted(seen) == list(range(6))


def test_numbers_of_rows_are_few_close_and_divide_over_devices():
    for devices in (1, 3, 8):
        sizes = [round_rows(count, multiple=devices) for count in range(1, 1025)]
        assert all(size >= count and size % devices == 0 for count, size in enumerate(sizes, start=1))
        assert all(size <= count * 9 / 8 + devices for count, size in enumerate(sizes, start=1))
        assert len(set(sizes)) <= 80


def test_row_length_follows_the_data_and_not_the_limit():
    short = Instances([np.ones(7, np.int32), np.ones(20, np.int32)], np.array([7, 20], np.int32), [0, 1])
    assert row_shape([short], batch_size=32).length == 32


def test_an_example_longer_than_a_row_is_one_line():
    features = random_features("tags", examples=4)
    with pytest.raises(UserError, match="longer than a sequence of 4"):
        packed_batch(features, [0, 1], shape=RowShape(4, 1, 1), kind=sized("tags"))
