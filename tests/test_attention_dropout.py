"""Dropout of attention probabilities: the rate, and heads, places, rows, layers and sites that are unrelated."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import dropout
from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.dropout import Dropout

pytestmark = pytest.mark.numerics

# Bounds are so many standard deviations of what independent fair draws would give; seeds are fixed (test_dropout.py).
SIGMAS = 4.5


def dropped(
    seed: int = 0, *, rows: tuple[int, ...] = (0,), rate: float = 0.5, site: int = 1, layer: int = 0, heads: int = 8
) -> np.ndarray:
    """Return which of [row, head, 128 queries, 128 keys] are dropped."""
    dropout = Dropout.create(jax.random.key(seed), rows=jnp.asarray(rows)).at_layer(layer)
    state = AttentionDropout.create(dropout, rate=rate, site=site)
    assert state is not None
    return ~np.asarray(state.keep(jnp.arange(heads), length=128))


def assert_unrelated(streams: list[np.ndarray]) -> None:
    """Check that no two masks of rate 0.5 agree more or less often than chance."""
    signs = np.stack([stream.ravel() for stream in streams]).astype(np.float64) * 2 - 1
    correlations = signs @ signs.T / signs.shape[1]
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < SIGMAS / math.sqrt(signs.shape[1])


def test_nothing_is_dropped_where_nothing_is_asked_for() -> None:
    assert AttentionDropout.create(None, rate=0.1, site=1) is None
    assert AttentionDropout.create(Dropout.create(jax.random.key(0), rows=jnp.arange(1)), rate=0.0, site=1) is None


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_rate_holds_in_every_head_and_row(rate: float) -> None:
    mask = dropped(rows=tuple(range(16)), rate=rate)
    assert abs(mask.sum() - rate * mask.size) < SIGMAS * math.sqrt(mask.size * rate * (1 - rate))
    a_head = mask.sum((2, 3))
    assert (np.abs(a_head - rate * 128**2) < SIGMAS * math.sqrt(128**2 * rate * (1 - rate))).all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_heads_that_share_a_word_drop_together_as_often_as_chance(rate: float) -> None:
    mask = dropped(rows=tuple(range(64)), rate=rate, heads=4)
    count = mask[:, 0].size
    for number in (2, 3, 4):
        fair = rate**number
        bound = SIGMAS * math.sqrt(count * fair * (1 - fair))
        for heads in itertools.combinations(range(4), number):
            together = np.logical_and.reduce([mask[:, head] for head in heads]).sum()
            assert abs(together - fair * count) < bound


def test_heads_rows_layers_sites_and_steps_are_unrelated() -> None:
    assert_unrelated([*dropped(heads=32)[0]])
    assert_unrelated([dropped(rows=(row,), layer=layer) for row in (0, 1, 2, 3, 7, 2**20) for layer in (0, 1, 2, 23)])
    assert_unrelated([dropped(seed, site=site) for seed in range(8) for site in (1, 2)])


def test_places_are_unrelated() -> None:
    signs = dropped(rows=tuple(range(8))).reshape(8, 8, -1) * 2.0 - 1
    spectrum = np.abs(np.fft.rfft(signs, axis=-1)) ** 2
    lags = np.fft.irfft(spectrum, axis=-1).mean((0, 1)) / signs.shape[-1]
    assert np.abs(lags[1:]).max() < 6 / math.sqrt(signs.size)  # the largest of 16,384 lags
    square = signs.reshape(64, 128, 128)
    assert max(np.abs(square.mean(1)).max(), np.abs(square.mean(2)).max()) < 6 / math.sqrt(128)
    # Four corners of a rectangle share their row and column counters in pairs.
    corners = square[:, :-1, :-1] * square[:, 1:, :-1] * square[:, :-1, 1:] * square[:, 1:, 1:]
    assert abs(corners.mean()) < SIGMAS / math.sqrt(corners.size)


def test_a_head_has_its_mask_whatever_heads_are_beside_it() -> None:
    state = AttentionDropout.create(Dropout.create(jax.random.key(0), rows=jnp.arange(2)), rate=0.1, site=1)
    assert state is not None
    whole = np.asarray(state.keep(jnp.arange(12), length=128))
    np.testing.assert_array_equal(state.keep(jnp.array([9, 2]), length=128), whole[:, [9, 2]])


def test_mixing_and_the_factors_lose_no_word() -> None:
    words = jnp.arange(2**16, dtype=jnp.uint32) * jnp.uint32(65_537)
    for head in range(dropout.SHARED_BY):
        factor = dropout.multiplier(jnp.int32(head))
        assert int(factor) % 2 == 1
        assert len(np.unique(np.asarray(dropout.mix(words) * factor))) == 2**16
