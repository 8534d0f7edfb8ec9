"""Activations of the inner layer; the GELUs leave their slope behind, so that going back is one multiplication.

Automatic differentiation computes tanh and two dozen products anew in the backward pass, in float32, four times the
hidden size wide. On a GPU, where that is hidden behind reading and writing, the input is left instead: it is there
already, and the slope need not be written (1.2 of 76 ms a step of BERT-Large on an H200).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.model.chip import is_gpu, write_once


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


_Saved = tuple[Array | None, Array | None]


def _forward(function: Callable[[Array], tuple[Array, Array]], x: Array) -> tuple[Array, _Saved]:
    value, slope = function(x.astype(jnp.float32))
    if is_gpu():
        return value.astype(x.dtype), (x, None)
    value, slope = write_once(value.astype(x.dtype), slope.astype(x.dtype))
    return value, (None, slope)


def _backward(function: Callable[[Array], tuple[Array, Array]], saved: _Saved, grads: Array) -> tuple[Array]:
    x, slope = saved
    if slope is None:
        assert x is not None
        slope = function(x.astype(jnp.float32))[1].astype(x.dtype)
    return (grads * slope,)


_apply.defvjp(_forward, _backward)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": functools.partial(_apply, _gelu_new),
    "gelu": functools.partial(_apply, _gelu),
    "relu": jax.nn.relu,
}
