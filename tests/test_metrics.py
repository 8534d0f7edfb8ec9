"""Figures: pairs add up, windows travel."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.training.metrics import Mean, MetricWindow, add_means
from tests.rounding import assert_rounded_alike, sum_bound


@pytest.mark.numerics
def test_the_pairs_of_parts_add_up_to_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values, weights = jnp.asarray(rng.normal(size=100)), jnp.asarray(rng.integers(0, 3, 100), jnp.float32)
    whole = Mean.of(values, weights=weights)
    # Parts of unlike weight: the mean of their means would be another number.
    parts = [Mean.of(values[part], weights=weights[part]) for part in (slice(0, 7), slice(7, 60), slice(60, None))]
    total = add_means(add_means({"x": parts[0]}, {"x": parts[1]}), {"x": parts[2]})["x"]
    bound = sum_bound(100, size=float(np.average(np.abs(values), weights=weights)) / np.sqrt(100))
    assert_rounded_alike(total.value(), np.average(np.asarray(values, np.float64), weights=weights), bound=bound)
    assert_rounded_alike(total.value(), whole.value(), bound=bound)
    assert abs(float(np.mean([part.value() for part in parts])) - float(whole.value())) > 1e-3


def test_the_mean_of_nothing_is_zero() -> None:
    assert float(Mean.of(jnp.ones(4), weights=jnp.zeros(4)).value()) == 0.0


def test_parts_with_other_figures_are_a_mistake() -> None:
    mean = Mean.of(jnp.ones(1), weights=jnp.ones(1))
    with pytest.raises(KeyError):
        add_means({"x": mean, "y": mean}, {"x": mean})


def means(total: float, weight: float) -> dict[str, Mean]:
    """Return one figure."""
    return {"loss": Mean(jnp.float32(total), jnp.float32(weight))}


def test_a_window_weighs_its_steps() -> None:
    window = MetricWindow()
    window.add(means(10.0, 1.0))
    window.add(means(20.0, 9.0))
    assert window.means() == {"loss": 3.0}
    window.clear()
    assert window.means() == {}


def test_a_window_survives_json_to_the_bit() -> None:
    window = MetricWindow()
    for index in range(50):
        window.add(means(0.1 * index, 1 / 3))
    saved = json.loads(json.dumps(window.to_json()))
    resumed = MetricWindow(saved)
    for both in (window, resumed):
        both.add(means(0.7, 1.0))
    assert resumed.means() == window.means()
    assert resumed.to_json() == window.to_json()


def test_what_was_saved_does_not_change_with_the_window() -> None:
    window = MetricWindow()
    window.add(means(1.0, 1.0))
    saved = window.to_json()
    resumed = MetricWindow(saved)
    resumed.add(means(5.0, 1.0))
    window.add(means(7.0, 1.0))
    assert saved == {"loss": [1.0, 1.0]}


def test_a_figure_without_weight_is_zero_and_not_nan() -> None:
    window = MetricWindow()
    window.add(means(0.0, 0.0))
    assert window.means() == {"loss": 0.0}


def test_a_window_adds_in_float64() -> None:
    window = MetricWindow()
    window.add(means(2.0**24, 1.0))
    for _ in range(8):
        window.add(means(1.0, 1.0))  # lost in float32
    assert window.to_json()["loss"][0] == 2.0**24 + 8
