"""Truncation of a pair: the original's loops, whatever closed form computes them; nothing is cut without need."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config.task_options import DataOptions
from bert_jax.prediction.rows import pair
from bert_jax.rows.truncation import tokens_to_cut, truncate_pair, truncate_spans, truncate_spans_one_by_one
from bert_jax.tasks.texts import instance
from tests.finetune_data import tokenizer

lengths = st.integers(0, 40)
limits = st.integers(0, 70)


@given(lengths, lengths, limits)
def test_truncation_equals_the_originals_loop(length_a, length_b, limit):
    """`_truncate_seq_pair` of run_classifier.py."""
    a, b = list(range(length_a)), list(range(100, 100 + length_b))
    first, second = list(a), list(b)
    while len(first) + len(second) > limit:
        (first if len(first) > len(second) else second).pop()
    assert truncate_pair(a, b, limit=limit) == (first, second)
    assert tokens_to_cut(length_a, length_b, limit=limit) == (length_a - len(first), length_b - len(second))


@given(lengths, lengths, limits, st.integers(0, 1000))
def test_truncation_one_by_one_equals_the_originals_loop_coin_for_coin(length_a, length_b, limit, seed):
    """`truncate_seq_pair` of create_pretraining_data.py."""
    rng, again = random.Random(seed), random.Random(seed)
    sides = [[100, 100 + length_a], [500, 500 + length_b]]
    while sum(end - start for start, end in sides) > limit:
        front = rng.random() < 0.5
        side = sides[0] if sides[0][1] - sides[0][0] > sides[1][1] - sides[1][0] else sides[1]
        side[0 if front else 1] += 1 if front else -1
    found = truncate_spans_one_by_one((100, 100 + length_a, 500, 500 + length_b), limit=limit, rng=again)
    assert found == (*sides[0], *sides[1])
    assert rng.getstate() == again.getstate()  # later pairs of the shard depend on it


@given(lengths, lengths, limits, st.integers(0, 1000))
def test_truncated_spans_are_inside_the_old_ones_and_full_where_something_was_cut(length_a, length_b, limit, seed):
    spans = (100, 100 + length_a, 500, 500 + length_b)
    for truncate in (truncate_spans, truncate_spans_one_by_one):
        a, a_end, b, b_end = truncate(spans, limit=limit, rng=random.Random(seed))
        assert 100 <= a <= a_end <= 100 + length_a
        assert 500 <= b <= b_end <= 500 + length_b
        assert a_end - a + b_end - b == min(length_a + length_b, limit)
        assert abs((a_end - a) - (b_end - b)) <= max(1, abs(length_a - length_b))


def test_coins_thrown_at_once_are_as_random_as_one_by_one():
    rng = random.Random(0)
    sums = np.zeros((2, 2))
    for _ in range(4000):
        length_a, length_b, limit = rng.randint(1, 60), rng.randint(1, 60), rng.randint(2, 80)
        spans = (100, 100 + length_a, 500, 500 + length_b)
        for number, truncate in enumerate((truncate_spans, truncate_spans_one_by_one)):
            a, _, b, _ = truncate(spans, limit=limit, rng=rng)
            sums[number] += a - 100, b - 500
    # Some 20,000 coins a side: a difference of 2 % is five standard deviations.
    np.testing.assert_allclose(sums[0], sums[1], rtol=0.03)


def test_prediction_truncates_a_pair_as_fine_tuning_does():
    words = tokenizer()
    for first, second, length in ((20, 20, 16), (20, 25, 16), (25, 20, 16), (3, 20, 17), (20, 3, 17), (2, 2, 9)):
        texts = " ".join(["good"] * first), " ".join(["film"] * second)
        example = pair(*texts, tokenizer=words, max_length=length)
        ids, first_length = instance(
            *words.encode_batch(texts), tokenizer=words, data=DataOptions(max_seq_length=length)
        )
        assert (list(example.ids), example.first_length) == (ids.tolist(), first_length)
