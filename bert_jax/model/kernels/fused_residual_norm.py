"""LayerNorm(hidden + drop(product + bias)) in TPU kernels (Pallas): the way back, and on some chips the way there.

Forward, XLA computes all of it behind the matmul that gives `product`, and each reader of the result normalizes anew.
Backward, the sums over features stand between two matmuls that each want the result, and the sums over tokens want it
too, so XLA takes several passes over the tokens and draws the dropout's mask in each (benchmarks/RESULTS.md). A kernel
takes one: it reads two arrays and writes two, mostly from and to VMEM.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, UInt32

from bert_jax.model.chip import normalises_once
from bert_jax.model.dense import add_bias
from bert_jax.model.dropout import drop
from bert_jax.model.kernels import fused_residual_norm_passes as passes
from bert_jax.model.kernels.backends import TPU, pltpu
from bert_jax.model.kernels.fused_residual_norm_passes import ROUND, SUBLANES, SUMS, Tiling
from bert_jax.model.normalization import layer_norm

_BLOCK_BYTES = 1024 * 1024  # of one array in one step of the grid; with two of each, 8 MiB of VMEM
_LANES = 128
_WIDEST = 4096


def is_supported(shape: tuple[int, ...]) -> bool:
    """Say whether the kernels take [B, T, D]: whole rounds of tokens, whole registers of features."""
    fits = len(shape) == 3 and shape[1] % ROUND == 0 and shape[2] % _LANES == 0 and shape[2] <= _WIDEST
    return fits and TPU.missing() is None


def fused_residual_norm(
    arrays: tuple[Array, ...],
    *,
    eps: float,
    seeds: UInt32[Array, " B"] | None,
    rate: float,
    both_ways: bool | None = None,
    interpret: bool = False,
) -> Float[Array, "B T D"]:
    """Return the norm, in the dtype of the product.

    `arrays` are the input and the product, [B, T, D], and [D] each the product's bias, the norm's scale and its bias.
    `seeds` are those of `Dropout.row_seeds`. With `both_ways` (default: as suits the chip) forward is a kernel too,
    else the plain form. `interpret` runs the kernels' source on any backend, slowly.
    """
    if seeds is None:
        seeds, rate = jnp.zeros(len(arrays[0]), jnp.uint32), 0.0
    both_ways = normalises_once() if both_ways is None else both_ways
    out: Array = _norm((Tiling(arrays[1].shape[1], rate, eps), both_ways, interpret), *arrays, seeds)
    return out


def loop_rounds(*, rows: int, length: int, width: int, item_bytes: int) -> list[int]:
    """Return the rounds of a pass's loops, outermost first: the grid's steps, and those over a step's tokens."""
    block = _block((rows, length, width), item_bytes=item_bytes)
    steps = rows * length // math.prod(block)
    return [steps, *(count for count in (math.prod(block) // ROUND,) if count > 1)]


_Static = tuple[Tiling, bool, bool]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(static: _Static, *arrays: Array) -> Array:
    return _forward(static, *arrays)[0]


def _forward(static: _Static, *arrays: Array) -> tuple[Array, Any]:
    hidden, product, product_bias, scale, bias, seeds = arrays
    plan, both_ways, _ = static
    if both_ways:
        inputs = (seeds, hidden, product, *map(_line, (product_bias, scale, bias)))
        total, out = _call(passes.forward, static, inputs=inputs, outputs=[hidden, product])
    else:
        added: Array = add_bias(product, product_bias)
        if plan.rate:
            added = cast(Array, drop(added, seeds, plan.rate))
        total = hidden + added
        out = cast(Array, layer_norm(total, scale, bias, plan.eps, product.dtype))
    # The biases are kept for their dtypes alone.
    return out, (total, scale, seeds, product_bias[:0], bias[:0])


def _backward(static: _Static, saved: Any, d_out: Array) -> tuple[Any, ...]:
    total, scale, seeds, product_bias, bias = saved
    rows, tokens = _block(d_out.shape, item_bytes=d_out.dtype.itemsize)
    batch, length, width = d_out.shape
    sums = jax.ShapeDtypeStruct((batch // rows, length // tokens, SUBLANES, width), jnp.float32)
    inputs = (seeds, d_out, total, _line(scale))
    d_hidden, d_product, sums = _call(passes.backward, static, inputs=inputs, outputs=[total, d_out, sums])
    found = dict(zip(SUMS, sums.sum((0, 1)), strict=False))
    return (
        d_hidden,
        d_product,
        found["product_bias"].astype(product_bias.dtype),
        found["scale"].astype(scale.dtype),
        found["bias"].astype(bias.dtype),
        np.zeros(batch, jax.dtypes.float0),
    )


_norm.defvjp(_forward, _backward)


def _call(kernel: Any, static: _Static, *, inputs: tuple[Array, ...], outputs: list[Any]) -> tuple[Array, ...]:
    """Run a pass over the grid (rows, tokens)."""
    plan, _, interpret = static
    batch, length, width = inputs[1].shape
    rows, tokens = _block(inputs[1].shape, item_bytes=inputs[1].dtype.itemsize)

    def spec(array: Any) -> pl.BlockSpec:
        if array.ndim == 2:
            return pl.BlockSpec((1, width), lambda *_: (0, 0))
        if array.ndim == 4:
            return pl.BlockSpec((1, 1, SUBLANES, width), lambda b, t, *_: (b, t, 0, 0))
        return pl.BlockSpec((rows, tokens, width), lambda b, t, *_: (b, t, 0))

    has_sums = any(array.ndim == 4 for array in outputs)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch // rows, length // tokens),
            in_specs=[spec(array) for array in inputs[1:]],
            out_specs=[spec(array) for array in outputs],
            scratch_shapes=[pltpu.VMEM((len(SUMS), SUBLANES, width), jnp.float32)] * has_sums,
        ),
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=30 * batch * length * width,
            transcendentals=0,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (*inputs, *outputs)),
        ),
        interpret=interpret,
        name=f"residual_norm_{kernel.__name__}",
    )(*inputs)


def _line(weights: Float[Array, " D"]) -> Float[Array, "1 D"]:
    return weights.astype(jnp.float32)[None]


def _block(shape: tuple[int, ...], *, item_bytes: int) -> tuple[int, int]:
    """Return the rows and the tokens of one step of the grid: whole rows if one fits."""
    batch, length, width = shape
    most = max(1, _BLOCK_BYTES // (ROUND * width * item_bytes))  # rounds of a step
    rounds = length // ROUND
    tokens = _largest_divisor(rounds, at_most=most)
    return (_largest_divisor(batch, at_most=most // rounds) if tokens == rounds else 1), tokens * ROUND


def _largest_divisor(number: int, *, at_most: int) -> int:
    return max(choice for choice in range(1, number + 1) if number % choice == 0 and choice <= at_most)
