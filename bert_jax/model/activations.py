"""Activations of the inner layer; the GELUs leave their slope behind, so that going back is one multiplication.

Automatic differentiation computes tanh and two dozen products anew in the backward pass, in float32, four times the
hidden size wide. On a GPU that is hidden behind reading and writing, and the product that the inner layer's matmul left
is kept instead: one array is written, not two.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.model.chip import is_gpu, write_once
from bert_jax.model.dense import add_bias


def _gelu_new(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return the tanh form of the original (modeling.py), and its slope; x(1 + tanh u)/2 is x sigmoid(2u)."""
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    sigmoid = 0.5 * jnp.tanh(x * (scale + scale * cubic * square)) + 0.5
    slope = sigmoid + x * (sigmoid - sigmoid * sigmoid) * (2 * scale + 6 * scale * cubic * square)
    return x * sigmoid, slope


def _gelu(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Return HuggingFace's erf form, and its slope."""
    below = 0.5 * jax.lax.erf(x * math.sqrt(0.5)) + 0.5
    return x * below, below + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(function: Callable[[Array], tuple[Array, Array]], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    return function(x.astype(jnp.float32))[0].astype(x.dtype)


def _forward(function: Callable[[Array], tuple[Array, Array]], x: Array) -> tuple[Array, Array]:
    value, slope = function(x.astype(jnp.float32))
    value, slope = write_once(value.astype(x.dtype), slope.astype(x.dtype))
    return value, slope


def _backward(function: Callable[[Array], tuple[Array, Array]], slope: Array, grads: Array) -> tuple[Array]:
    del function
    return (grads * slope,)


_apply.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _biased(
    function: Callable[[Array], tuple[Array, Array]], product: Float[Array, "*n F"], bias: Float[Array, " F"]
) -> Float[Array, "*n F"]:
    return function(add_bias(product, bias).astype(jnp.float32))[0].astype(product.dtype)


def _biased_backward(
    function: Callable[[Array], tuple[Array, Array]], saved: tuple[Array, Array], grads: Array
) -> tuple[Array, Array]:
    product, bias = saved
    slope = function(add_bias(product, bias).astype(jnp.float32))[1].astype(product.dtype)
    return grads * slope, (grads * slope).reshape(-1, len(bias)).sum(0)


_biased.defvjp(lambda function, product, bias: (_biased(function, product, bias), (product, bias)), _biased_backward)


def activate(name: str, product: Float[Array, "*n F"], bias: Float[Array, " F"] | None) -> Float[Array, "*n F"]:
    """Return the activation `name` of a product and its bias, if it has one."""
    if bias is None:
        return ACTIVATIONS[name](product)
    if is_gpu() and name in _WITH_SLOPE:
        return _biased(_WITH_SLOPE[name], product, bias)
    return ACTIVATIONS[name](add_bias(product, bias))


_WITH_SLOPE: dict[str, Callable[[Array], tuple[Array, Array]]] = {"gelu_new": _gelu_new, "gelu": _gelu}

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    **{name: functools.partial(_apply, function) for name, function in _WITH_SLOPE.items()},
    "relu": jax.nn.relu,
}
