"""Activations equal Flax's plain ones, in value and gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bert_jax.model import activations
from bert_jax.model.activations import ACTIVATIONS, activate

pytestmark = pytest.mark.numerics

# Where tanh is all but -1, 1 + tanh keeps a unit of 2^-24, and the slope has it times up to 70 (x = 6),
# in either form: 4.2e-6, and a product's rounding on top.
# Elsewhere some 16 roundings of a polynomial, a quotient and two products, on either side.
FLOAT32: dict[str, Any] = {"atol": 5e-6, "rtol": 2 * 16 * 2.0**-24}
# One rounding to eight bits of value and slope, one of their product.
BFLOAT16: dict[str, Any] = {"atol": 2**-9, "rtol": 2**-7}
PLAIN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
}
X = np.concatenate([np.linspace(-30, 30, 4001), [0.0, -0.0, 1e-30, 1e4, -1e4]]).astype(np.float32)


def value_and_slope(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return function(x), jax.grad(lambda x: function(x).sum())(x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_gradient_are_the_plain_ones(name: str) -> None:
    ours, plain = value_and_slope(ACTIVATIONS[name], jnp.asarray(X)), value_and_slope(PLAIN[name], jnp.asarray(X))
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, **FLOAT32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_in_bfloat16_they_are_the_float32_ones_rounded(name: str) -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    ours, plain = value_and_slope(ACTIVATIONS[name], x), value_and_slope(PLAIN[name], x.astype(jnp.float32))
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, **BFLOAT16)


@pytest.mark.parametrize("name", ["gelu_new", "gelu"])
def test_the_backward_pass_computes_no_activation(name: str) -> None:
    x = jnp.asarray(X)
    _, back = jax.vjp(ACTIVATIONS[name], x)
    text = str(jax.make_jaxpr(back)(x))
    assert "mul" in text
    assert not any(word in text for word in ("tanh", "erf", "exp"))


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_of_a_product_and_its_bias_too_on_every_chip(name: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "is_gpu", lambda: on_gpu)
    product, bias = jnp.asarray(X[:4000].reshape(5, 8, 100)), jnp.linspace(-1, 1, 100)
    ours, pull = jax.vjp(lambda *both: activate(name, *both), product, bias)
    plain, pull_plain = jax.vjp(lambda product, bias: PLAIN[name](product + bias[None, None]), product, bias)
    outer = jnp.cos(product)
    np.testing.assert_allclose(ours, plain, **FLOAT32)
    for one, other in zip(pull(outer), pull_plain(outer), strict=True):
        # The bias's gradient is a sum of 40.
        np.testing.assert_allclose(one, other, atol=40 * FLOAT32["atol"], rtol=FLOAT32["rtol"])
