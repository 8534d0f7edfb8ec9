"""Dropout: the rate, the mean, and streams that have nothing to do with each other."""

import dataclasses
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import MeshConfig
from bert_jax.model.dropout import Dropout
from bert_jax.parallel import mesh as meshes
from tests.rounding import rounded

pytestmark = pytest.mark.numerics

# Bounds are so many standard deviations of what independent fair draws would give; the seeds are fixed.
SIGMAS = 4.5
FALSE_ALARMS = 1 / 150  # of independent draws, however many pairs a test looks at


def kept(seed: int = 0, *, rows: Any = (0,), rate: float = 0.5, site: int = 0, layer: int | None = None) -> np.ndarray:
    """Return which of 128 x 128 values a row are kept."""
    dropout = Dropout.create(jax.random.key(seed), rows=jnp.asarray(rows))
    if layer is not None:
        dropout = dropout.at_layer(layer)
    return np.asarray(dropout.apply(jnp.ones((len(rows), 128, 128)), rate=rate, site=site)) > 0


def assert_unrelated(streams: list[np.ndarray]) -> None:
    """Check that no two masks of rate 0.5 agree more or less often than chance, and all pairs as often as chance."""
    signs = np.stack([stream.ravel() for stream in streams]).astype(np.float64) * 2 - 1
    correlations = signs @ signs.T / math.sqrt(signs.shape[1])
    deviations = correlations[np.triu_indices(len(signs), 1)]
    assert np.abs(deviations).max() < statistics.NormalDist().inv_cdf(1 - FALSE_ALARMS / 2 / len(deviations))
    assert abs(np.square(deviations).mean() - 1) < SIGMAS * math.sqrt(2 / len(deviations))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_rate_holds(rate: float) -> None:
    mask = kept(rows=range(32), rate=rate)
    sigma = math.sqrt(mask.size * rate * (1 - rate))
    assert abs((~mask).sum() - rate * mask.size) < SIGMAS * sigma
    a_row = (~mask).sum((1, 2))
    assert (np.abs(a_row - rate * 128**2) < SIGMAS * math.sqrt(128**2 * rate * (1 - rate))).all()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_scaling_keeps_the_mean_and_the_values(rate: float) -> None:
    values = jax.random.normal(jax.random.key(9), (16, 128, 64)) + 3
    dropout = Dropout.create(jax.random.key(1), rows=jnp.arange(16))
    dropped = np.asarray(dropout.apply(values, rate=rate, site=0))
    there = dropped != 0
    np.testing.assert_allclose(dropped[there], np.asarray(values)[there] / (1 - rate), rtol=rounded(2))
    spread = math.sqrt(rate / (1 - rate) * float(jnp.square(values).mean()) / values.size)
    assert abs(dropped.mean() - float(values.mean())) < SIGMAS * spread


def test_rate_zero_changes_nothing() -> None:
    values = jax.random.normal(jax.random.key(9), (2, 8, 8))
    dropout = Dropout.create(jax.random.key(1), rows=jnp.arange(2))
    np.testing.assert_array_equal(dropout.apply(values, rate=0.0, site=0), values)


def test_the_dtype_stays() -> None:
    dropout = Dropout.create(jax.random.key(1), rows=jnp.arange(2))
    for dtype in (jnp.bfloat16, jnp.float32):
        assert dropout.apply(jnp.ones((2, 4, 4), dtype), rate=0.1, site=1).dtype == dtype


def test_layers_are_unrelated() -> None:
    assert_unrelated([kept(layer=layer) for layer in range(24)] + [kept()])


def test_sites_are_unrelated() -> None:
    assert_unrelated([kept(layer=layer, site=site) for layer in range(4) for site in range(4)])


def test_rows_are_unrelated() -> None:
    assert_unrelated(list(kept(rows=range(128))))
    assert_unrelated(list(kept(rows=[2**k for k in range(31)])))


def test_steps_are_unrelated() -> None:
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(32)]
    ones = jnp.ones((1, 128, 128))
    assert_unrelated(
        [np.asarray(Dropout.create(key, rows=jnp.arange(1)).apply(ones, rate=0.5, site=0)) > 0 for key in keys]
    )


def test_rows_layers_and_sites_do_not_cancel() -> None:
    # A row's stream must not return as that of another row in another layer or at another site.
    streams = [
        kept(rows=[row], layer=layer, site=site)
        for row in (0, 1, 2, 3, 7)
        for layer in (0, 1, 2, 11)
        for site in range(1, 4)
    ]
    assert_unrelated(streams)


def test_places_are_unrelated() -> None:
    signs = kept(rows=range(16)).astype(np.float64) * 2 - 1
    spectrum = np.abs(np.fft.rfftn(signs.reshape(16, -1), axes=(1,))) ** 2
    correlations = np.fft.irfft(spectrum, axis=1).mean(0) / signs[0].size
    # Every lag within a row at once: neighbors, the next token's same feature, the next head's same score.
    assert np.abs(correlations[1:]).max() < 6 / math.sqrt(signs.size)  # the largest of 16,384 lags
    # No column and no line of a row is dropped as a whole.
    assert max(np.abs(signs.mean(1)).max(), np.abs(signs.mean(2)).max()) < 6 / math.sqrt(128)


def test_shapes_with_the_same_places_share_no_pattern_along_an_axis() -> None:
    # Attention probabilities: heads and queries of one row must drop different keys.
    dropout = Dropout.create(jax.random.key(3), rows=jnp.arange(1))
    mask = np.asarray(dropout.apply(jnp.ones((1, 8, 64, 64)), rate=0.5, site=1))[0] > 0
    assert_unrelated([mask[head] for head in range(8)])
    assert len(np.unique(mask.reshape(-1, 64), axis=0)) == 8 * 64


def test_a_row_has_its_mask_whatever_the_batch() -> None:
    together = kept(rows=range(16))
    np.testing.assert_array_equal(kept(rows=[5])[0], together[5])
    np.testing.assert_array_equal(kept(rows=[9, 5, 0]), together[[9, 5, 0]])


def test_masks_are_the_same_jitted_scanned_and_sharded() -> None:
    values = jnp.ones((16, 8, 32))
    dropout = Dropout.create(jax.random.key(2), rows=jnp.arange(16))

    def two_layers(state: Dropout, array: jax.Array) -> jax.Array:
        return jnp.stack([state.at_layer(i).apply(array, rate=0.3, site=2) for i in range(2)])

    def scanned(state: Dropout, array: jax.Array) -> jax.Array:
        def layer(carry: None, index: jax.Array) -> tuple[None, jax.Array]:
            return carry, state.at_layer(index).apply(array, rate=0.3, site=2)

        return jax.lax.scan(layer, None, jnp.arange(2))[1]

    expected = two_layers(dropout, values)
    np.testing.assert_array_equal(jax.jit(two_layers)(dropout, values), expected)
    np.testing.assert_array_equal(jax.jit(scanned)(dropout, values), expected)
    mesh = meshes.make_mesh(MeshConfig(2, 2, 2))
    with meshes.use_mesh(mesh):
        sharded = dataclasses.replace(
            dropout,
            seed=jax.device_put(dropout.seed, meshes.replicated(mesh)),
            rows=jax.device_put(dropout.rows, meshes.batch_sharding(mesh)),
        )
        result = jax.jit(two_layers)(sharded, jax.device_put(values, meshes.batch_sharding(mesh)))
    np.testing.assert_array_equal(result, expected)


def test_the_gradient_passes_through_what_is_kept() -> None:
    dropout = Dropout.create(jax.random.key(2), rows=jnp.arange(2))
    values = jnp.ones((2, 8, 32))
    gradient = jax.grad(lambda v: dropout.apply(v, rate=0.25, site=0).sum())(values)
    np.testing.assert_array_equal(gradient, dropout.apply(values, rate=0.25, site=0))
