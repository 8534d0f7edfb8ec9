"""Attention: the reference against NumPy in float64, and who may look at whom."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import random_rows, to_device

from bert_jax.config import CHOICES
from bert_jax.model.attention import attend, attention_mask
from bert_jax.model.dropout import Dropout
from bert_jax.pretrain.rows import encoder_inputs

# float32 sums of 32 terms of order 1.
TOLERANCE = 2e-6
IMPLEMENTATIONS = CHOICES["model.attention_implementation"]


def random_qkv(seed: int, *, shape: tuple[int, int, int, int], scale: float = 1.0) -> list[jax.Array]:
    """Return query, key and value."""
    return [scale * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(seed), 3)]


def slow_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Attend in float64, by the formula."""
    q, k, v = (np.asarray(array, np.float64) for array in (query, key, value))
    scores = np.einsum("btnk,bsnk->bnts", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnk->btnk", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("direction", CHOICES["model.attention_direction"])
def test_attention_equals_the_formula(implementation: str, scale: float, direction: str) -> None:
    inputs = encoder_inputs(to_device(random_rows(0, batch=4, length=32, instances=3)))
    mask = attention_mask(inputs.segment_ids, position_ids=inputs.position_ids, direction=direction)
    query, key, value = random_qkv(1, shape=(4, 32, 2, 8), scale=scale)
    result = attend(
        query, key=key, value=value, mask=mask, dropout=None, rate=0.1, site=1, implementation=implementation
    )
    expected = slow_attention(query, key, value, np.asarray(mask))
    # Scores of large inputs are of order 1000, whose float32 spacing is 6e-5.
    np.testing.assert_allclose(result, expected, atol=TOLERANCE if scale == 1 else 30 * 2e-4)


def slow_mask(segment_ids: np.ndarray, position_ids: np.ndarray, *, direction: str) -> np.ndarray:
    """Return who sees whom, by loops over one row."""
    length = len(segment_ids)
    allowed = np.zeros((length, length), bool)
    for q in range(length):
        for k in range(length):
            same = segment_ids[q] == segment_ids[k] or segment_ids[q] == 0
            past = direction == "bidirectional" or position_ids[k] <= position_ids[q]
            allowed[q, k] = segment_ids[k] > 0 and same and past
    return allowed


@pytest.mark.parametrize("direction", CHOICES["model.attention_direction"])
def test_tokens_see_their_own_instance_and_padding_sees_every_token(direction: str) -> None:
    inputs = encoder_inputs(to_device(random_rows(2, batch=16, length=24, instances=3, empty_rows=1)))
    mask = np.asarray(attention_mask(inputs.segment_ids, position_ids=inputs.position_ids, direction=direction))
    assert mask.shape == (16, 1, 24, 24)
    for row in range(16):
        expected = slow_mask(
            np.asarray(inputs.segment_ids[row]), np.asarray(inputs.position_ids[row]), direction=direction
        )
        np.testing.assert_array_equal(mask[row, 0], expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_with_nothing_to_see_is_finite_and_so_are_its_gradients(implementation: str) -> None:
    query, key, value = random_qkv(3, shape=(2, 8, 2, 4))
    mask = jnp.zeros((2, 1, 8, 8), bool)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, key=k, value=v, mask=mask, dropout=None, rate=0.0, site=1, implementation=implementation).sum()

    values, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(query, key, value)
    assert np.isfinite(values)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_hidden_has_no_influence_however_large(implementation: str) -> None:
    query, key, value = random_qkv(4, shape=(1, 16, 2, 8))
    place = jnp.arange(16)[None]
    mask = attention_mask(jnp.where(place < 10, 1, 0), position_ids=place, direction="bidirectional")
    arguments = {"mask": mask, "dropout": None, "rate": 0.0, "site": 1, "implementation": implementation}
    first = attend(query, key=key, value=value, **arguments)
    huge = jnp.where(place[..., None, None] < 10, 1, 1e6)
    second = attend(query, key=key * huge, value=value * huge, **arguments)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_is_that_of_the_probabilities(implementation: str) -> None:
    query, key, _ = random_qkv(5, shape=(2, 16, 2, 16))
    # With the identity for values, attention returns its probabilities.
    value = jnp.broadcast_to(jnp.eye(16)[None, :, None, :], query.shape)
    dropout = Dropout.create(jax.random.key(6), rows=jnp.arange(2))
    mask = jnp.ones((2, 1, 16, 16), bool)
    arguments = {"key": key, "value": value, "mask": mask, "site": 1, "implementation": implementation}
    plain = attend(query, dropout=None, rate=0.25, **arguments).swapaxes(1, 2)
    dropped = attend(query, dropout=dropout, rate=0.25, **arguments).swapaxes(1, 2)
    np.testing.assert_allclose(dropped, dropout.apply(plain, rate=0.25, site=1), atol=TOLERANCE)
    other = dataclasses.replace(dropout, seed=dropout.seed + 1)
    assert not np.array_equal(dropped, attend(query, dropout=other, rate=0.25, **arguments).swapaxes(1, 2))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_close_to_float32(implementation: str) -> None:
    query, key, value = random_qkv(7, shape=(2, 32, 2, 16))
    mask = jnp.ones((2, 1, 32, 32), bool)
    arguments = {"mask": mask, "dropout": None, "rate": 0.0, "site": 1, "implementation": implementation}
    wide = attend(query, key=key, value=value, **arguments)
    narrow = attend(
        query.astype(jnp.bfloat16), key=key.astype(jnp.bfloat16), value=value.astype(jnp.bfloat16), **arguments
    )
    assert narrow.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 2^-8 of scores up to 4, probabilities and values each.
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=0.05)
