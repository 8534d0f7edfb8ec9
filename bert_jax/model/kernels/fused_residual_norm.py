"""LayerNorm(hidden + dropout(product + bias)) in TPU kernels (Pallas): the backward pass, on some chips also forward.

In the forward pass, XLA fuses all of it into the matmul that computes `product`, and recomputes the norm in each reader
of the result. In the backward pass, two matmuls and the sums over tokens need the result of the sums over features. So
XLA reads the tokens several times and recomputes the dropout mask each time (benchmarks/RESULTS.md). The kernel reads
them once: it reads two arrays and writes two, mostly from and to VMEM.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, UInt32

from bert_jax.model.chip import writes_norms
from bert_jax.model.dense import add_bias
from bert_jax.model.dropout import drop
from bert_jax.model.kernels import fused_residual_norm_passes as passes
from bert_jax.model.kernels.backends import TPU, pltpu
from bert_jax.model.kernels.fused_residual_norm_passes import ROUND, SUBLANES, SUMS, Tiling
from bert_jax.model.normalization import layer_norm

_BLOCK_BYTES = 1024 * 1024  # of one array in a grid step; four double-buffered arrays take 8 MiB of VMEM
_LANES = 128
_WIDEST = 4096


def is_supported(shape: tuple[int, ...]) -> bool:
    """Return whether the kernels support [B, T, D]: T a multiple of 64, D a multiple of 128 up to 4,096."""
    fits = len(shape) == 3 and shape[1] % ROUND == 0 and shape[2] % _LANES == 0 and shape[2] <= _WIDEST
    return fits and TPU.missing() is None


def fused_residual_norm(
    arrays: tuple[Array, ...],
    *,
    eps: float,
    seeds: UInt32[Array, " B"] | None,
    rate: float,
    fuse_forward: bool | None = None,
    interpret: bool = False,
) -> Float[Array, "B T D"]:
    """Return the norm, in the dtype of the product.

    `arrays` are the input and the product, [B, T, D], then the product's bias, the norm's scale and the norm's bias,
    [D]. `seeds` are those of `Dropout.row_seeds`. With `fuse_forward` (default: depends on the chip) the forward pass
    is a kernel too, else the plain form. `interpret` runs the kernels' source on any backend, slowly.
    """
    if seeds is None:
        seeds, rate = jnp.zeros(len(arrays[0]), jnp.uint32), 0.0
    fuse_forward = writes_norms() if fuse_forward is None else fuse_forward
    out: Array = _norm((Tiling(arrays[1].shape[1], rate, eps), fuse_forward, interpret), *arrays, seeds)
    return out


def loop_rounds(*, rows: int, length: int, width: int, item_bytes: int) -> list[int]:
    """Return the iterations of a pass's loops, outermost first: the grid, and the loop over the tokens of a step."""
    block = _block((rows, length, width), item_bytes=item_bytes)
    steps = rows * length // math.prod(block)
    return [steps, *(count for count in (math.prod(block) // ROUND,) if count > 1)]


_Static = tuple[Tiling, bool, bool]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(static: _Static, *arrays: Array) -> Array:
    return _forward(static, *arrays)[0]


def _forward(static: _Static, *arrays: Array) -> tuple[Array, Any]:
    hidden, product, product_bias, scale, bias, seeds = arrays
    plan, fuse_forward, _ = static
    if fuse_forward:
        inputs = (seeds, hidden, product, *map(_row, (product_bias, scale, bias)))
        total, out = _call(passes.forward, static, inputs=inputs, outputs=[hidden, product])
    else:
        added: Array = add_bias(product, product_bias)
        if plan.rate:
            added = cast(Array, drop(added, seeds, plan.rate))
        total = hidden + added
        out = cast(Array, layer_norm(total, scale, bias, plan.eps, product.dtype))
    # The biases are residuals only for their dtypes.
    return out, (total, scale, seeds, product_bias[:0], bias[:0])


def _backward(static: _Static, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    total, scale, seeds, product_bias, bias = residuals
    rows, tokens = _block(d_out.shape, item_bytes=d_out.dtype.itemsize)
    batch, length, width = d_out.shape
    sums = jax.ShapeDtypeStruct((batch // rows, length // tokens, SUBLANES, width), jnp.float32)
    inputs = (seeds, d_out, total, _row(scale))
    d_hidden, d_product, sums = _call(passes.backward, static, inputs=inputs, outputs=[total, d_out, sums])
    weight_grads = dict(zip(SUMS, sums.sum((0, 1)), strict=False))
    return (
        d_hidden,
        d_product,
        weight_grads["product_bias"].astype(product_bias.dtype),
        weight_grads["scale"].astype(scale.dtype),
        weight_grads["bias"].astype(bias.dtype),
        np.zeros(batch, jax.dtypes.float0),
    )


_norm.defvjp(_forward, _backward)


def _call(kernel: Any, static: _Static, *, inputs: tuple[Array, ...], outputs: list[Any]) -> tuple[Array, ...]:
    """Run one pass on the grid (sequences, tokens)."""
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


def _row(weights: Float[Array, " D"]) -> Float[Array, "1 D"]:
    return weights.astype(jnp.float32)[None]


def _block(shape: tuple[int, ...], *, item_bytes: int) -> tuple[int, int]:
    """Return the sequences and the tokens of a grid step: whole sequences if at least one fits."""
    batch, length, width = shape
    max_rounds = max(1, _BLOCK_BYTES // (ROUND * width * item_bytes))  # rounds per step
    rounds = length // ROUND
    tokens = _largest_divisor(rounds, at_most=max_rounds)
    return (_largest_divisor(batch, at_most=max_rounds // rounds) if tokens == rounds else 1), tokens * ROUND


def _largest_divisor(number: int, *, at_most: int) -> int:
    return max(choice for choice in range(1, number + 1) if number % choice == 0 and choice <= at_most)
