"""The loss of a student's relations and its gradient are the paper's, whatever is around a text in its row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.training.relations import relation_divergences, token_weights
from tests.minilm_reference import text_gradient, text_loss
from tests.rounding import UNIT, sum_bound

pytestmark = pytest.mark.numerics

LENGTH, WIDTH, TEACHER_WIDTH, HEADS = 24, 24, 48, 6
# Instances of each sequence, end to end from position 0; the rest is padding. The last sequence is empty.
PACKED = ((24,), (5, 9, 4), (1, 17), ())


def segments(spans: tuple[tuple[int, ...], ...]) -> np.ndarray:
    ids = np.zeros((len(spans), LENGTH), np.int32)
    for row, sizes in enumerate(spans):
        ids[row, : sum(sizes)] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    return ids


def vectors(seed: int, width: int) -> np.ndarray:
    """Return vectors whose scores have a standard deviation of a few units."""
    return 1.5 * np.random.default_rng(seed).standard_normal((len(PACKED), LENGTH, width)).astype(np.float32)


def total(student: jax.Array, teacher: jax.Array, segment_ids: jax.Array) -> jax.Array:
    divergences = relation_divergences(student, teacher=teacher, segment_ids=segment_ids, heads=HEADS)
    return (divergences * token_weights(segment_ids)).sum()


def bound(student: np.ndarray, teacher: np.ndarray) -> float:
    """Return how far the float32 divergence of a token may be from the exact one.

    A score is off by the rounding of its sum of products. A logarithm of a probability has the error of its score, and
    of the sum of the others; a divergence is a mean of differences of two of them, whose rounding it has besides.
    """
    worst = 0.0
    for array, size in ((student, WIDTH), (teacher, TEACHER_WIDTH)):
        heads = np.abs(array.astype(np.float64)).reshape(*array.shape[:2], HEADS, -1)
        score = (heads**2).sum(-1).max() / np.sqrt(size // HEADS)
        worst += 2 * (sum_bound(size // HEADS, size=score) + 2 * UNIT * score + sum_bound(LENGTH))
    return worst


def test_loss_and_gradient_are_those_of_the_formulas_with_padding_and_packed_instances():
    student, teacher, segment_ids = vectors(0, WIDTH), vectors(1, TEACHER_WIDTH), segments(PACKED)
    loss, gradient = jax.value_and_grad(total)(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(segment_ids))
    expected, expected_gradient = 0.0, np.zeros(student.shape)
    for row, sizes in enumerate(PACKED):
        ends = np.cumsum(sizes, dtype=int)
        for begin, end in zip([0, *ends], ends, strict=False):
            arguments = student[row, begin:end], teacher[row, begin:end], HEADS
            expected += text_loss(*arguments)
            expected_gradient[row, begin:end] = text_gradient(*arguments)
    texts, limit = sum(map(len, PACKED)), bound(student, teacher)
    assert expected > 1  # a loss of random relations, compared with which the bound is small
    assert limit * texts < expected / 100
    assert abs(float(loss) - expected) <= limit * texts
    # A probability is off by its size times the error of its logarithm; then come two sums over the tokens of a text.
    magnitude = 2 * np.abs(student).max() / np.sqrt(WIDTH // HEADS)
    assert np.abs(np.asarray(gradient) - expected_gradient).max() <= magnitude * (limit + sum_bound(LENGTH))
    assert np.abs(expected_gradient).max() > 100 * magnitude * (limit + sum_bound(LENGTH)) / LENGTH
    assert not np.asarray(gradient)[segment_ids == 0].any()  # exactly 0, not only small


def test_a_text_has_the_same_loss_alone_padded_and_packed():
    student, teacher = jnp.asarray(vectors(2, WIDTH)), jnp.asarray(vectors(3, TEACHER_WIDTH))
    packed = jnp.asarray(segments(((7, 11),) * len(PACKED)))
    together = np.asarray(relation_divergences(student, teacher=teacher, segment_ids=packed, heads=HEADS))
    alone = relation_divergences(
        student[:, 7:18], teacher=teacher[:, 7:18], segment_ids=jnp.ones((len(PACKED), 11), jnp.int32), heads=HEADS
    )
    limit = bound(np.asarray(student), np.asarray(teacher))
    np.testing.assert_allclose(together[:, 7:18], np.asarray(alone), rtol=0, atol=limit)
    changed = student.at[:, 18:].add(5.0).at[:, :7].add(-3.0)
    others = np.asarray(relation_divergences(changed, teacher=teacher, segment_ids=packed, heads=HEADS))
    np.testing.assert_array_equal(others[:, 7:18], together[:, 7:18])


def test_equal_relations_have_no_divergence_and_no_gradient():
    student = jnp.asarray(vectors(4, WIDTH))
    loss, gradient = jax.value_and_grad(total)(student, student, jnp.asarray(segments(PACKED)))
    assert float(loss) == 0
    # Probabilities add up to 1 but for the rounding of their sum.
    limit = sum_bound(LENGTH) * np.abs(student).max() / np.sqrt(WIDTH // HEADS)
    assert np.abs(np.asarray(gradient)).max() < limit


def test_the_weights_of_a_text_add_up_to_1():
    weights = np.asarray(token_weights(jnp.asarray(segments(PACKED))))
    np.testing.assert_allclose(weights.sum(1), [len(sizes) for sizes in PACKED], rtol=LENGTH * UNIT)
    assert weights[3].max() == 0
