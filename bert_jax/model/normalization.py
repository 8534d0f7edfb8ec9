"""Layer normalization in one pass, whose residuals are the input and two values per token.

Automatic differentiation would save several float32 arrays of the input's size, stacked over all layers if layers are
scanned (benchmarks/RESULTS.md).
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
    """Return `values` normalized over the last axis, in `dtype`; mean and E[x^2] - E[x]^2 are float32, in one pass."""
    return _forward(values, scale, bias, eps, dtype)[0]


_Residuals = tuple[Array, Array, Array, Array, tuple[()] | None]


def _forward(values: Array, scale: Array, bias: Array | None, eps: float, dtype: DTypeLike) -> tuple[Array, _Residuals]:
    values_f32 = values.astype(jnp.float32)
    mean = values_f32.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(values_f32).mean(-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + eps)
    scaled = (values_f32 - mean) * inverse * jax.lax.broadcast_to_rank(scale, values_f32.ndim)
    result = (scaled if bias is None else scaled + jax.lax.broadcast_to_rank(bias, values_f32.ndim)).astype(dtype)
    return result, (values, scale, mean, inverse, None if bias is None else ())


def _backward(eps: float, dtype: DTypeLike, residuals: _Residuals, d_out: Array) -> tuple[Array, Array, Array | None]:
    del eps, dtype
    values, scale, mean, inverse, has_bias = residuals
    d_out = d_out.astype(jnp.float32)
    normalized = (values.astype(jnp.float32) - mean) * inverse
    scaled = d_out * jax.lax.broadcast_to_rank(scale, d_out.ndim)
    projection = (scaled * normalized).mean(-1, keepdims=True)
    d_values = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalized * projection)
    tokens = tuple(range(values.ndim - 1))
    d_scale = (d_out * normalized).sum(tokens)
    d_bias = None if has_bias is None else d_out.sum(tokens)
    d_values, d_scale = d_values.astype(values.dtype), d_scale.astype(scale.dtype)
    return d_values, d_scale, None if d_bias is None else d_bias.astype(scale.dtype)


layer_norm.defvjp(_forward, _backward)
