"""The bounds of rounding: each holds for float32 next to float64, and none lets a wrong result pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bert_jax.config import ModelConfig
from tests import finetune_data, rounding, source_helpers, tiny_model
from tests.rounding import assert_rounded_alike, assert_trees_rounded_alike

RNG = np.random.default_rng(0)


def summed(kind: Any, wrong: bool) -> Any:
    """Return products of vectors, one after the other; wrong: without the last term of each."""
    first, second = (np.random.default_rng(seed).normal(size=(512, 40)).astype(np.float32) for seed in (1, 2))
    terms = first.astype(kind) * second.astype(kind)
    total = np.zeros(40, kind)
    for term in terms[:-1] if wrong else terms:
        total = total + term
    return total


def entropy(kind: Any, wrong: bool) -> Any:
    """Return cross-entropies over 1,000 classes; wrong: with a label smoothing of 0.01."""
    logits = np.random.default_rng(3).normal(size=(40, 1000)).astype(np.float32).astype(kind)
    losses = np.log(np.exp(logits).sum(-1)) - logits[:, 0]
    return 0.99 * losses + 0.01 * (np.log(np.exp(logits).sum(-1)) - logits.mean(-1)) if wrong else losses


def divergence(kind: Any, wrong: bool) -> Any:
    """Return a divergence at temperature 2; wrong: the temperature is 2 % off."""
    student, teacher = (3 * np.random.default_rng(4).normal(size=(2, 9, 3))).clip(-6, 6).astype(np.float32).astype(kind)
    temperature = kind(2.04 if wrong else 2)
    logs = [
        logits / temperature - np.log(np.exp(logits / temperature).sum(-1, keepdims=True))
        for logits in (teacher, student)
    ]
    return temperature**2 * (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)


def contrast(kind: Any, wrong: bool) -> Any:
    """Return InfoNCE of eight pairs; wrong: without one of the negatives."""
    vectors = np.random.default_rng(5).normal(size=(2, 8, 32)).astype(np.float32).astype(kind)
    first, second = vectors / np.sqrt((vectors**2).sum(-1, keepdims=True))
    logits = first @ second.T / kind(0.05)
    own = np.diagonal(logits)
    if wrong:
        logits = logits[:, np.arange(8) != 7]
    return np.logaddexp(np.log(np.exp(logits).sum(-1)), own)[:7] - own[:7]


def normalized(kind: Any, wrong: bool) -> Any:
    """Return values by a norm in one pass; wrong: the variance is divided by one less, 0.8 % off."""
    values = np.random.default_rng(6).normal(size=(20, 64)).astype(np.float32).astype(kind)
    mean = values.mean(-1, keepdims=True)
    variance = (values**2).mean(-1, keepdims=True) - mean**2
    return (values - mean) / np.sqrt(variance * 64 / 63 if wrong else variance)


def updated(kind: Any, wrong: bool) -> Any:
    """Return parameters after 20 steps of AdamW; wrong: without decay."""
    rng = np.random.default_rng(7)
    values = rng.normal(size=50).astype(np.float32).astype(kind)
    first, second = np.zeros_like(values), np.zeros_like(values)
    for step in range(1, 21):
        gradient = rng.normal(size=50).astype(np.float32).astype(kind)
        first = kind(0.9) * first + kind(0.1) * gradient
        second = kind(0.999) * second + kind(0.001) * gradient**2
        scales = [kind(1 / (1 - beta**step)) for beta in (0.9, 0.999)]
        update = first * scales[0] / (np.sqrt(second * scales[1]) + kind(1e-6))
        values = values - kind(0.01) * (update + (0 if wrong else kind(0.1) * values))
    return values


def recurrent(kind: Any, wrong: bool) -> Any:
    """Return the states of a simple LSTM of 16 after 24 steps; wrong: one gate is 1 % too large."""
    rng = np.random.default_rng(8)
    weights = (rng.normal(size=(4, 32, 16)) / 5).astype(np.float32).astype(kind)
    state, cell, states = np.zeros(16, kind), np.zeros(16, kind), []
    for _ in range(24):
        given = np.concatenate([rng.normal(size=16).astype(np.float32).astype(kind), state])
        write, keep, show, new = (given @ matrix for matrix in weights)
        sigmoid: Callable[[Any], Any] = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        cell = sigmoid(keep) * cell + sigmoid(write) * np.tanh(new) * kind(1.01 if wrong else 1)
        state = sigmoid(show) * np.tanh(cell)
        states.append(state)
    return np.stack(states)


FAMILIES: dict[str, tuple[Callable[[Any, bool], Any], float]] = {
    "sum": (summed, rounding.sum_bound(512, size=np.sqrt(512))),
    "cross-entropy": (entropy, rounding.cross_entropy_bound(1000, largest=5.0)),
    "divergence": (divergence, rounding.divergence_bound(3, largest=6.0, temperature=2.0)),
    "contrast": (contrast, rounding.contrast_bound(32, texts=8, temperature=0.05)),
    "norm": (normalized, rounding.norm_bound(64, tokens=20) * 3),  # of values up to 3
    "update": (updated, rounding.update_bound(20, rate=0.01, size=3.0)),
    "LSTM": (recurrent, rounding.lstm_bound(32, steps=24, layers=1)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bound_holds_for_float32_and_not_for_a_wrong_result(name: str) -> None:
    compute, bound = FAMILIES[name]
    expected = compute(np.float64, False)
    found = compute(np.float32, False)
    assert found.dtype == np.float32
    assert_rounded_alike(found, expected, bound=bound, what=name)
    with pytest.raises(AssertionError, match="apart"):
        assert_rounded_alike(compute(np.float32, True), expected, bound=bound)


@pytest.mark.parametrize(
    "model", [tiny_model.tiny_model(), finetune_data.tiny_model(), source_helpers.SMALL_TEST], ids=str
)
def test_bounds_of_models_let_no_row_of_sixteen_be_missing(model: ModelConfig) -> None:
    assert rounding.encoder_bound(model) < rounding.NOTICED / 10
    bound = rounding.gradient_bound(model, tokens=16 * 32)
    rows = RNG.normal(size=(16, 8, 8)) + 1
    whole = {"a": rows.mean(0), "b": rows.mean((0, 1))}
    assert_trees_rounded_alike(whole, whole, bound=bound)
    for wrong in ({**whole, "b": rows[:15].mean((0, 1))}, {**whole, "a": 1.01 * whole["a"]}):
        with pytest.raises(AssertionError, match="apart"):
            assert_trees_rounded_alike(wrong, whole, bound=bound)


def test_comparisons_refuse_a_bound_that_lets_one_per_cent_pass_and_a_nan() -> None:
    values = np.array([1.0, -4.0])
    assert_rounded_alike(1.005 * values, values, bound=0.02)
    for actual, bound in ((values, 0.04), (1.01 * values, 0.039), (np.array([np.nan, -4.0]), 0.01), (values[:1], 0.01)):
        with pytest.raises(AssertionError):
            assert_rounded_alike(actual, values, bound=bound)
    with pytest.raises(AssertionError, match="lets 1 % pass"):
        assert_trees_rounded_alike(values, values, bound=0.01)
    with pytest.raises(AssertionError):
        assert_trees_rounded_alike([values, np.array([np.nan])], [values, np.ones(1)], bound=0.001)


def test_a_bound_of_huggingface_is_at_most_what_is_promised() -> None:
    base = ModelConfig()
    assert rounding.encoder_bound(base) > rounding.PROMISED
    assert rounding.huggingface_bound(base) == rounding.PROMISED == 1e-4
    assert rounding.huggingface_bound(source_helpers.SMALL_TEST) < rounding.PROMISED
