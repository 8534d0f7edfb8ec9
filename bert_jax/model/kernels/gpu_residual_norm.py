"""LayerNorm(hidden + dropout(product + bias)) in GPU kernels (Pallas, through Triton), one per direction.

XLA reads or writes the tokens five times in the forward pass (bias, dropout and sum; moments; norm). In the backward
pass it does so more often, because sums over features and sums over tokens cannot share a fusion. Here a program has
whole tokens: each pass reads two arrays and writes two, and the sums over tokens are one row per program.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, UInt32

from bert_jax.model.dropout import keep_mask
from bert_jax.model.kernels.gpu_call import call_by_name

_TOKENS = 4  # per tile; a tile of 4 x 1024 float32 takes 16 registers in each of 256 threads
_TILES = 8  # per program of the backward pass
_WIDEST = 2048
_WARPS = 8


@dataclasses.dataclass(frozen=True)
class _Plan:
    length: int
    width: int
    rate: float
    eps: float
    interpret: bool

    @property
    def padded(self) -> int:
        """Return the width of a tile, a power of two."""
        return 1 << (self.width - 1).bit_length()


def is_supported(shape: tuple[int, ...], *, dtype: Any) -> bool:
    """Return whether the kernels support [B, T, D] of `dtype`: bfloat16, T a multiple of 32, D up to 2,048."""
    return dtype == jnp.bfloat16 and len(shape) == 3 and shape[1] % (_TOKENS * _TILES) == 0 and shape[2] <= _WIDEST


def gpu_residual_norm(
    arrays: tuple[Array, ...],
    *,
    eps: float,
    seeds: UInt32[Array, " B"] | None,
    rate: float,
    interpret: bool = False,
) -> Float[Array, "B T D"]:
    """Return the norm, in the dtype of the product; the sum is rounded to that dtype once and normalized in float32.

    `arrays` are the input and the product, [B, T, D], then the product's bias, the norm's scale and the norm's bias,
    [D]. `seeds` are those of `Dropout.row_seeds`; the dropped values are those of `Dropout.apply`. `interpret` runs the
    kernels' source on any backend, slowly.
    """
    batch, length, width = arrays[1].shape
    plan = _Plan(length, width, 0.0 if seeds is None else rate, eps, interpret)
    seeds = jnp.zeros(batch, jnp.uint32) if seeds is None else seeds
    out: Array = _norm(plan, *arrays, seeds)
    return out


_INPUTS: tuple[str, ...] = ("hidden", "product", "product_bias", "scale", "bias", "seeds")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(plan: _Plan, *arrays: Array) -> Array:
    return _forward(plan, *arrays)[0]


def _forward(plan: _Plan, *arrays: Array) -> tuple[Array, Any]:
    inputs: dict[str, Array] = dict(zip(_INPUTS, arrays, strict=True))
    product, moment = inputs["product"], jax.ShapeDtypeStruct(inputs["product"].shape[:2], jnp.float32)
    outputs = {"out": product, "total": product, "mean": moment, "inverse": moment}
    results = _call(_forward_pass, plan, inputs=inputs, outputs=outputs)
    saved = {name: results[name] for name in ("total", "mean", "inverse")}
    # The norm's bias is a residual only for its dtype.
    return results["out"], (saved | {name: inputs[name] for name in ("scale", "seeds")}, inputs["bias"][:0])


def _backward(plan: _Plan, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    saved, bias = residuals
    batch, length, width = d_out.shape
    sums = jax.ShapeDtypeStruct((batch, length // (_TOKENS * _TILES), width), jnp.float32)
    outputs = {"d_hidden": d_out, "d_product": d_out, "product_bias_sum": sums, "scale_sum": sums, "bias_sum": sums}
    results = _call(_backward_pass, plan, inputs=saved | {"d_out": d_out}, outputs=outputs)
    to_bias, to_scale, to_norm_bias = (
        results[name].sum((0, 1)) for name in ("product_bias_sum", "scale_sum", "bias_sum")
    )
    return (
        results["d_hidden"],
        results["d_product"],
        to_bias.astype(d_out.dtype),
        to_scale.astype(saved["scale"].dtype),
        to_norm_bias.astype(bias.dtype),
        np.zeros(batch, jax.dtypes.float0),
    )


_norm.defvjp(_forward, _backward)


def _call(kernel: Any, plan: _Plan, *, inputs: Mapping[str, Array], outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Run one pass on the grid (sequence, block of tokens)."""
    batch = len(inputs["seeds"])
    tokens = _TOKENS * _TILES if kernel is _backward_pass else _TOKENS

    def spec(name: str, array: Any) -> pl.BlockSpec:
        if name == "seeds":
            return pl.BlockSpec((1,), lambda b, i: (b,))
        if array.ndim == 1:
            return pl.BlockSpec((plan.padded,), lambda b, i: (0,))
        if array.ndim == 2:
            return pl.BlockSpec((None, tokens), lambda b, i: (b, i))
        if name.endswith("_sum"):
            return pl.BlockSpec((None, None, plan.padded), lambda b, i: (b, i, 0))
        return pl.BlockSpec((None, tokens, plan.padded), lambda b, i: (b, i, 0))

    return call_by_name(
        functools.partial(kernel, plan=plan),
        grid=(batch, plan.length // tokens),
        spec=spec,
        inputs=inputs,
        outputs=outputs,
        warps=_WARPS,
        stages=2,
        interpret=plan.interpret,
        name=f"gpu_residual_norm{kernel.__name__}",
    )


def _forward_pass(refs: Any, *, plan: _Plan) -> None:
    """Write the norm of a tile of tokens, the normalized sum, and its moments."""
    inside = (jnp.arange(plan.padded) < plan.width)[None, :]
    added = _load(refs.product, inside) + _load(refs.product_bias, inside[0])[None, :]
    if plan.rate:
        keep = _keep(refs.seeds, pl.program_id(1) * _TOKENS, plan=plan)
        added = jnp.where(keep, added * (1 / (1 - plan.rate)), 0.0)
    total = (_load(refs.hidden, inside) + added).astype(refs.total.dtype)
    _store(refs.total, total, inside)
    wide = total.astype(jnp.float32)
    mean = wide.sum(1) / plan.width
    variance = jnp.maximum((wide * wide).sum(1) / plan.width - mean * mean, 0.0)
    inverse = jax.lax.rsqrt(variance + plan.eps)
    refs.mean[...], refs.inverse[...] = mean, inverse
    normal = (wide - mean[:, None]) * inverse[:, None]
    out = normal * _load(refs.scale, inside[0])[None, :] + _load(refs.bias, inside[0])[None, :]
    _store(refs.out, out.astype(refs.out.dtype), inside)


def _backward_pass(refs: Any, *, plan: _Plan) -> None:
    """Write the gradients of a block of tokens, tile by tile, and the weight gradients summed over its tokens."""
    inside = (jnp.arange(plan.padded) < plan.width)[None, :]
    scale = _load(refs.scale, inside[0])[None, :]
    first_token = pl.program_id(1) * (_TOKENS * _TILES)

    def body(number: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tokens = pl.ds(number * _TOKENS, _TOKENS)
        grads = _load(refs.d_out.at[tokens, :], inside)
        inverse = refs.inverse[tokens][:, None]
        normal = (_load(refs.total.at[tokens, :], inside) - refs.mean[tokens][:, None]) * inverse
        normal = jnp.where(inside, normal, 0.0)
        scaled = grads * scale
        projection, mean_scaled = (scaled * normal).sum(1) / plan.width, scaled.sum(1) / plan.width
        to_hidden = inverse * (scaled - mean_scaled[:, None] - normal * projection[:, None])
        to_product = to_hidden
        if plan.rate:
            keep = _keep(refs.seeds, first_token + number * _TOKENS, plan=plan)
            to_product = jnp.where(keep, to_hidden * (1 / (1 - plan.rate)), 0.0)
        _store(refs.d_hidden.at[tokens, :], to_hidden.astype(refs.d_hidden.dtype), inside)
        _store(refs.d_product.at[tokens, :], to_product.astype(refs.d_product.dtype), inside)
        return sums[0] + to_product, sums[1] + grads * normal, sums[2] + grads

    zeros = jnp.zeros((_TOKENS, plan.padded), jnp.float32)
    sums = jax.lax.fori_loop(0, _TILES, body, (zeros, zeros, zeros))
    for out, total in zip((refs.product_bias_sum, refs.scale_sum, refs.bias_sum), sums, strict=True):
        _store(out, total.sum(0), inside[0])


def _keep(seeds: Any, first_token: Any, *, plan: _Plan) -> Array:
    """Return which values of a tile are kept."""
    token = (first_token + jnp.arange(_TOKENS, dtype=jnp.int32)).astype(jnp.uint32)[:, None]
    feature = jnp.arange(plan.padded, dtype=jnp.int32).astype(jnp.uint32)[None, :]
    return keep_mask((token, feature), sizes=(plan.length, plan.width), seed=seeds[0], rate=plan.rate)


def _load(ref: Any, inside: Array) -> Array:
    return plgpu.load(ref, mask=jnp.broadcast_to(inside, ref.shape), other=0.0).astype(jnp.float32)


def _store(ref: Any, values: Array, inside: Array) -> None:
    plgpu.store(ref, values, mask=jnp.broadcast_to(inside, values.shape))
