"""One-pass cross-entropy: equal to the textbook's below its bound, finite beyond it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.training.cross_entropy import (
    MAX_LOGIT,
    cross_entropy,
    exact_cross_entropy,
    log_softmax_cross_entropy,
)
from tests.rounding import assert_rounded_alike, cross_entropy_bound

pytestmark = pytest.mark.numerics


def draw(scale: float) -> tuple[jax.Array, jax.Array]:
    """Return logits [3, 7, 1000] and labels, half of them the best class."""
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(3, 7, 1000)) * scale).astype(np.float32)
    labels = np.where(rng.random((3, 7)) < 0.5, logits.argmax(-1), rng.integers(0, 1000, (3, 7)))
    return jnp.asarray(logits), jnp.asarray(labels)


def textbook(logits: jax.Array, labels: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return loss and its gradient for each row of logits, in float64."""
    wide = np.asarray(logits, np.float64)
    shares = np.exp(wide - wide.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    is_label = np.arange(wide.shape[-1]) == np.asarray(labels)[..., None]
    return -np.log(shares[is_label]).reshape(labels.shape), shares - is_label


@pytest.mark.parametrize("form", [cross_entropy, exact_cross_entropy, log_softmax_cross_entropy])
@pytest.mark.parametrize("scale", [0.01, 1.0, 15.0])
def test_every_form_equals_the_textbook_forward_and_backward(form: Any, scale: float) -> None:
    logits, labels = draw(scale)
    assert logits.max() < MAX_LOGIT
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(3, 7)), jnp.float32)
    loss, right = form(logits, labels)
    expected, slope = textbook(logits, labels)
    bound = cross_entropy_bound(1000, largest=float(np.abs(logits).max()))
    assert_rounded_alike(loss, expected, bound=bound)
    np.testing.assert_array_equal(right, np.asarray(logits).argmax(-1) == labels)
    mine = jax.grad(lambda x: (form(x, labels)[0] * weights).sum())(logits)
    # A slope is a probability, of the label's 1 is taken off. Below the smallest normal number it may be 0.
    sizes, weighted = np.abs(slope) + (slope < 0), np.asarray(weights, np.float64)[..., None]
    tiny = np.finfo(np.float32).tiny
    limit = (bound * sizes + tiny) * np.abs(weighted) + tiny
    assert_rounded_alike(mine, slope * weighted, bound=limit)


def test_logits_beyond_the_bound_give_finite_loss_and_gradient() -> None:
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 300.0]])
    loss, right = cross_entropy(logits, jnp.asarray([1, 1]))
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray([1, 1]))[0].sum())(logits)
    assert jnp.isfinite(loss).all()
    assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(right, [False, True])
    assert gradient[0, 0] > 0.9  # pushes the wrong class down
    assert gradient[0, 1] < -0.9


@pytest.mark.parametrize("offset", [81.0, 300.0, -110.0, -1e4])
def test_a_whole_vocabulary_out_of_bounds_gives_finite_loss_and_gradient(offset: float) -> None:
    logits = jnp.zeros((2, 30522)).at[:, 7].set(3.0) + offset
    labels = jnp.asarray([7, 8])
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels)[0].sum())(logits)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(gradient).all()
    assert gradient[0, 7] < 0  # the label is pushed up
    assert gradient[1, 8] < 0


def test_equal_best_logits_count_as_right() -> None:
    # Unlike argmax, which takes the first; equal float32 logits of trained models do not occur.
    assert cross_entropy(jnp.zeros((1, 4)), jnp.asarray([3]))[1].all()
