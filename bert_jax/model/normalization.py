"""Layer normalization in one pass, with a backward pass that keeps the input and two values per token.

What automatic differentiation keeps is several float32 arrays of the input's size; where layers are scanned they are
stacked over all layers (benchmarks/RESULTS.md).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    values: Float[Array, "*n D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    eps: float,
    dtype: DTypeLike,
) -> Float[Array, "*n D"]:
    """Normalize over the last axis and return `dtype`; the mean and E[x^2] - E[x]^2 are float32, from one pass."""
    return _forward(values, scale, bias, eps, dtype)[0]


_Saved = tuple[Array, Array, Array, Array, tuple[()] | None]


def _forward(values: Array, scale: Array, bias: Array | None, eps: float, dtype: DTypeLike) -> tuple[Array, _Saved]:
    wide = values.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + eps)
    scaled = (wide - mean) * inverse * jax.lax.broadcast_to_rank(scale, wide.ndim)
    result = (scaled if bias is None else scaled + jax.lax.broadcast_to_rank(bias, wide.ndim)).astype(dtype)
    return result, (values, scale, mean, inverse, None if bias is None else ())


def _backward(eps: float, dtype: DTypeLike, saved: _Saved, grads: Array) -> tuple[Array, Array, Array | None]:
    del eps, dtype
    values, scale, mean, inverse, has_bias = saved
    grads = grads.astype(jnp.float32)
    normal = (values.astype(jnp.float32) - mean) * inverse
    scaled = grads * jax.lax.broadcast_to_rank(scale, grads.ndim)
    along = (scaled * normal).mean(-1, keepdims=True)
    to_values = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    tokens = tuple(range(values.ndim - 1))
    to_scale = (grads * normal).sum(tokens)
    to_bias = None if has_bias is None else grads.sum(tokens)
    to_values, to_scale = to_values.astype(values.dtype), to_scale.astype(scale.dtype)
    return to_values, to_scale, None if to_bias is None else to_bias.astype(scale.dtype)


layer_norm.defvjp(_forward, _backward)
