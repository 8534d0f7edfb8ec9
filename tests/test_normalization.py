"""Layer normalization: value and gradients beside the plain form, and what it keeps for the backward pass."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.normalization import layer_norm
from tests.rounding import assert_trees_rounded_alike, norm_bound

pytestmark = pytest.mark.numerics

EPSILON = 1e-12
MEAN = 3
# The one-pass variance E[x^2] - E[x]^2 has the error of squares 1 + mean^2 times as large as the two-pass one.
BOUND = norm_bound(64, tokens=4 * 9) * (1 + MEAN**2)


def plain(values: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Normalize in two passes, to be differentiated automatically."""
    mean = values.mean(-1, keepdims=True)
    variance = jnp.square(values - mean).mean(-1, keepdims=True)
    return (values - mean) / jnp.sqrt(variance + EPSILON) * scale[None, None] + bias[None, None]


def ours(values: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return layer_norm(values, scale, bias, EPSILON, values.dtype)


def arguments(seed: int = 0) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    values, scale, bias = (jax.random.normal(k, s) for k, s in zip(keys, [(4, 9, 64), (64,), (64,)], strict=True))
    return [values + MEAN, scale, bias]


def value_and_gradients(function: Any, given: list[jax.Array]) -> Any:
    wave = jnp.sin(jnp.arange(given[0].size).reshape(given[0].shape))
    return function(*given), jax.grad(lambda *a: (function(*a) * wave).sum(), argnums=(0, 1, 2))(*given)


def test_value_and_gradients_are_the_plain_ones() -> None:
    found, expected = (value_and_gradients(function, arguments()) for function in (ours, plain))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_trees_rounded_alike(one, other, bound=BOUND)


def test_equal_values_have_finite_gradients() -> None:
    value, gradients = value_and_gradients(ours, [jnp.full((1, 2, 64), 7.0), *arguments()[1:]])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_input_and_two_figures_a_token_are_kept(dtype: Any) -> None:
    values, scale, bias = arguments()
    _, back = jax.vjp(lambda x: layer_norm(x, scale, bias, EPSILON, dtype), values.astype(dtype))
    large = [leaf for leaf in jax.tree.leaves(back) if leaf.size >= values.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(values.shape, dtype)]


def test_without_a_bias_value_and_gradients_are_those_of_a_bias_of_zero() -> None:
    values, scale, bias = arguments()
    wave = jnp.sin(jnp.arange(values.size).reshape(values.shape))

    def total(values: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
        return (cast(jax.Array, layer_norm(values, scale, bias, EPSILON, values.dtype)) * wave).sum()

    found = jax.value_and_grad(total, argnums=(0, 1))(values, scale, None)
    expected = jax.value_and_grad(total, argnums=(0, 1))(values, scale, jnp.zeros_like(bias))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
