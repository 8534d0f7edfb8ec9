"""Layer normalisation in one pass, with a backward pass that keeps the input and two figures a token.

What automatic differentiation keeps is several float32 arrays of the input's size; where layers are scanned they are
stacked over all layers (benchmarks/RESULTS.md).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    values: Float[Array, "*n D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float, dtype: DTypeLike
) -> Float[Array, "*n D"]:
    """Normalise over the last axis and return `dtype`; the mean and E[x^2] - E[x]^2 are float32, from one pass."""
    return _forward(values, scale, bias, eps, dtype)[0]


_Saved = tuple[Array, Array, Array, Array]


def _forward(values: Array, scale: Array, bias: Array, eps: float, dtype: DTypeLike) -> tuple[Array, _Saved]:
    wide = values.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + eps)
    normal = (wide - mean) * inverse
    return (normal * scale + bias).astype(dtype), (values, scale, mean, inverse)


def _backward(eps: float, dtype: DTypeLike, saved: _Saved, grads: Array) -> tuple[Array, Array, Array]:
    del eps, dtype
    values, scale, mean, inverse = saved
    grads = grads.astype(jnp.float32)
    normal = (values.astype(jnp.float32) - mean) * inverse
    scaled = grads * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    to_values = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    tokens = tuple(range(values.ndim - 1))
    to_scale, to_bias = (grads * normal).sum(tokens), grads.sum(tokens)
    return to_values.astype(values.dtype), to_scale.astype(scale.dtype), to_bias.astype(scale.dtype)


layer_norm.defvjp(_forward, _backward)
