"""The rotation of queries or keys in a TPU kernel (Pallas); the backward pass is the rotation by the opposite angles.

The halves of a head are 32 lanes apart. XLA moves them through memory for that: 45,000 cycles of a v5e for the queries,
or the keys, of 1,024 tokens of ModernBERT-base, in each direction. In a register it is two rotations of its lanes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from bert_jax.model.kernels.backends import TPU, pltpu
from bert_jax.model.kernels.head_pairs import HEAD_SIZE, LANES

_HALF = HEAD_SIZE // 2
_TOKENS = (256, 128)  # per grid step


def is_supported(*, length: int, heads: int, head_size: int) -> bool:
    """Return whether the kernel supports these shapes (per device): pairs of heads of 64, T a multiple of 128."""
    fits = head_size == HEAD_SIZE and heads % 2 == 0 and length > 0 and length % LANES == 0
    return fits and TPU.missing() is None


def rotate(
    values: Float[Array, "B T N K"],
    *,
    cosines: Float[Array, "B T h"],
    sines: Float[Array, "B T h"],
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Return the rotated values, as `model/rotation.py` computes them. `interpret` runs it on any backend, slowly."""
    batch, length, heads, size = values.shape
    flat = values.reshape(batch, length, heads * size)
    of_pair = jnp.concatenate([cosines] * 4, axis=-1), jnp.concatenate([-sines, sines] * 2, axis=-1)
    rotated: Array = _rotate(interpret, flat, *of_pair)
    return rotated.reshape(values.shape)


def grid_steps(length: int) -> int:
    """Return the grid steps per sequence, to count cycles from a schedule."""
    return length // _tokens(length)


def _tokens(length: int) -> int:
    return next(tokens for tokens in _TOKENS if length % tokens == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rotate(interpret: bool, values: Array, cosines: Array, sines: Array) -> Array:
    return _call(values, cosines, sines, interpret=interpret)


def _forward(interpret: bool, values: Array, cosines: Array, sines: Array) -> tuple[Array, Any]:
    return _call(values, cosines, sines, interpret=interpret), (cosines, sines)


def _backward(interpret: bool, residuals: Any, d_out: Array) -> tuple[Array, Array, Array]:
    cosines, sines = residuals
    # Angles are positions times constants: nothing reads their gradients.
    return _call(d_out, cosines, -sines, interpret=interpret), jnp.zeros_like(cosines), jnp.zeros_like(sines)


_rotate.defvjp(_forward, _backward)


def _kernel(values: Any, cosines: Any, sines: Any, out: Any) -> None:
    is_first = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) % HEAD_SIZE < _HALF
    for start in range(0, values.shape[-1], LANES):
        at = slice(start, start + LANES)
        pair = values[0, :, at].astype(jnp.float32)
        before, after = pltpu.roll(pair, LANES - _HALF, 1), pltpu.roll(pair, _HALF, 1)
        other = jnp.where(is_first, before, after)
        out[0, :, at] = (pair * cosines[0] + other * sines[0]).astype(out.dtype)


def _call(values: Array, cosines: Array, sines: Array, *, interpret: bool) -> Array:
    batch, length, width = values.shape
    tokens = _tokens(length)

    def spec(features: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, tokens, features), lambda b, i: (b, i, 0))

    return pl.pallas_call(
        _kernel,
        grid=(batch, length // tokens),
        in_specs=[spec(width), spec(LANES), spec(LANES)],
        out_specs=spec(width),
        out_shape=jax.ShapeDtypeStruct(values.shape, values.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=3 * values.size,
            transcendentals=0,
            bytes_accessed=2 * values.size * values.dtype.itemsize + 8 * cosines.size,
        ),
        interpret=interpret,
        name="rotation",
    )(values, cosines, sines)
