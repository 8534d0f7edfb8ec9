"""Activations of the feed-forward layer. The GELUs save their derivative, so the backward pass is one multiplication.

Automatic differentiation would recompute tanh and two dozen float32 products in the backward pass, over arrays four
times as wide as the hidden size. On a GPU, memory traffic hides that cost, so there the input of the activation is the
residual: the forward pass writes one array instead of two.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.model.chip import is_gpu, materialize
from bert_jax.model.dense import add_bias


def _gelu_new(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return the tanh form of the original (modeling.py) and its derivative; x(1 + tanh u)/2 is x sigmoid(2u)."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    sigmoid = 0.5 * jnp.tanh(x * (scale + scale * cubic * square)) + 0.5
    derivative = sigmoid + x * (sigmoid - sigmoid * sigmoid) * (2 * scale + 6 * scale * cubic * square)
    return x * sigmoid, derivative


def _gelu(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return HuggingFace's erf form and its derivative."""
    cdf = 0.5 * jax.lax.erf(x * math.sqrt(0.5)) + 0.5
    return x * cdf, cdf + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(function: Callable[[Array], tuple[Array, Array]], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return function(x.astype(jnp.float32))[0].astype(x.dtype)


def _forward(function: Callable[[Array], tuple[Array, Array]], x: Array) -> tuple[Array, Array]:
    value, derivative = function(x.astype(jnp.float32))
    value, derivative = materialize(value.astype(x.dtype), derivative.astype(x.dtype))
    return value, derivative


def _backward(function: Callable[[Array], tuple[Array, Array]], derivative: Array, d_out: Array) -> tuple[Array]:
    del function
    return (d_out * derivative,)


_apply.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_bias(
    function: Callable[[Array], tuple[Array, Array]], product: Float[Array, "*n F"], bias: Float[Array, " F"]
) -> Float[Array, "*n F"]:
    return function(add_bias(product, bias).astype(jnp.float32))[0].astype(product.dtype)


def _with_bias_backward(
    function: Callable[[Array], tuple[Array, Array]], residuals: tuple[Array, Array], d_out: Array
) -> tuple[Array, Array]:
    product, bias = residuals
    derivative = function(add_bias(product, bias).astype(jnp.float32))[1].astype(product.dtype)
    return d_out * derivative, (d_out * derivative).reshape(-1, len(bias)).sum(0)


_with_bias.defvjp(
    lambda function, product, bias: (_with_bias(function, product, bias), (product, bias)), _with_bias_backward
)


def activate(name: str, product: Float[Array, "*n F"], bias: Float[Array, " F"] | None) -> Float[Array, "*n F"]:
    """Return the activation `name` of `product` plus `bias`."""
    if bias is None:
        return ACTIVATIONS[name](product)
    if is_gpu() and name in _WITH_DERIVATIVE:
        return _with_bias(_WITH_DERIVATIVE[name], product, bias)
    return ACTIVATIONS[name](add_bias(product, bias))


_WITH_DERIVATIVE: dict[str, Callable[[Array], tuple[Array, Array]]] = {"gelu_new": _gelu_new, "gelu": _gelu}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    **{name: functools.partial(_apply, function) for name, function in _WITH_DERIVATIVE.items()},
    "relu": jax.nn.relu,
}
