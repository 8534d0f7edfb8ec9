"""Attention with dropout in GPU kernels (Pallas, through Triton), forward and backward: no T x T array in memory.

The algorithm is FlashAttention-2 (Dao 2023; `gpu_attention_passes.py`). For one head, each program has one block of
queries (forward, dQ) or of keys (dK, dV) and loops over the others. The backward passes recompute the probabilities
from the log-sum-exp (`lse`) of each query. If all keys fit in one block (T = 128, the length of most of pre-training),
one backward kernel computes all gradients: it has all scores of a query, so it can compute dQ too.

The dropout mask comes from the hash of `attention_dropout`, as in every implementation; cuDNN's dropout would use a
generator whose seed is fixed in the program. The hash takes more integer operations than the rest of a pass, so a
separate kernel computes it once, four heads at a time, and stores one bit per probability for the three passes.

The kernels read and write the heads in the layout of the projections, `[B, T, N * K]`, so nothing is transposed in
memory. They also add the biases of the projections and sum their gradients. The key bias adds the same number to all
scores of a query, so it has no effect and no gradient.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, UInt32

from bert_jax.model.dropout import SHARED_BY
from bert_jax.model.kernels import gpu_attention_passes as passes
from bert_jax.model.kernels.gpu_attention_passes import BITS, Blocks, Tiling
from bert_jax.model.kernels.gpu_call import call_by_name

_HEAD_SIZES = (16, 32, 64, 128)  # supported by the tiles of tensor cores and the registers of a block
_SHORTEST = 64  # tokens; the reference computes sequences shorter than a block

_Three = tuple[Array, Array, Array]


def is_supported(*, length: int, head_size: int, dtype: Any) -> bool:
    """Return whether the kernels support these shapes: bfloat16, T a multiple of 64."""
    return dtype == jnp.bfloat16 and head_size in _HEAD_SIZES and length % _SHORTEST == 0 and length > 0


def make_plan(*, length: int, head_size: int, rate: float, left_to_right: bool) -> Tiling:
    """Return the blocks: for heads of 64 and T of 128 or 512, the fastest on an H200 (benchmarks/RESULTS.md).

    Other shapes have similar blocks; heads of 128 have smaller ones, for the shared memory of smaller chips.
    """
    if head_size > 64:
        dkv = Blocks(queries=32, keys=64, warps=4, stages=1)
    elif length in (64, 128):
        dkv = Blocks(queries=64, keys=length, warps=length // 16, stages=1)
    else:
        dkv = Blocks(queries=32, keys=128 if length % 128 == 0 else 64, warps=4, stages=3)
    return Tiling(
        length=length,
        head_size=head_size,
        rate=rate,
        left_to_right=left_to_right,
        forward=Blocks(queries=128 if length % 128 == 0 else 64, keys=64, warps=4, stages=3),
        dkv=dkv,
        dq=Blocks(queries=64, keys=64, warps=4, stages=3),
    )


def gpu_attention(
    projections: tuple[Float[Array, "B T N K"], Float[Array, "B T N K"], Float[Array, "B T N K"]],
    *,
    biases: tuple[Float[Array, "N K"], Float[Array, "N K"], Float[Array, "N K"]],
    segment_ids: Int[Array, "B T"],
    position_ids: Int[Array, "B T"],
    seeds: UInt32[Array, " B"],
    first_head: Int[Array, ""],
    plan: Tiling,
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Return attention within segments, with dropout of probabilities at `plan.rate`.

    `projections` are query, key and value before their `biases` are added. `first_head` is the global number of this
    device's first head; if the number of heads is a multiple of four, so is `first_head`. `interpret` runs the kernels'
    source on any backend, slowly.
    """
    batch, length, heads, size = projections[0].shape
    flat = tuple(array.reshape(batch, length, heads * size) for array in projections)
    int_inputs = {
        "segments": segment_ids,
        "positions": position_ids,
        "seeds": seeds,
        "first_head": first_head.reshape(1),
    }
    out: Array = _attend((plan, interpret), flat, tuple(bias.reshape(heads * size) for bias in biases), int_inputs)
    return out.reshape(projections[0].shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: tuple[Tiling, bool], projections: _Three, biases: _Three, int_inputs: dict[str, Array]) -> Array:
    return _forward(static, projections, biases, int_inputs)[0]


def _forward(
    static: tuple[Tiling, bool], projections: _Three, biases: _Three, int_inputs: dict[str, Array]
) -> tuple[Array, Any]:
    plan, query = static[0], projections[0]
    batch, length, width = query.shape
    heads = width // plan.head_size
    inputs = {name: int_inputs[name] for name in ("segments", "positions")}
    inputs |= dict(zip(("q", "k", "v"), projections, strict=True)) | {"q_bias": biases[0], "v_bias": biases[2]}
    if plan.rate:
        bits = jax.ShapeDtypeStruct((batch, heads, length // BITS, length), jnp.int32)
        inputs |= _call(passes.draw, static, blocks=None, inputs=int_inputs, outputs={"bits": bits})
    lse = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    results = _call(passes.forward, static, blocks=plan.forward, inputs=inputs, outputs={"out": query, "lse": lse})
    return results["out"], (inputs, results, int_inputs)


def _backward(static: tuple[Tiling, bool], residuals: Any, d_out: Array) -> tuple[Any, ...]:
    inputs, results, int_inputs = residuals
    plan, query = static[0], inputs["q"]
    batch, length, width = query.shape
    products = d_out.astype(jnp.float32) * results["out"].astype(jnp.float32)
    delta = products.reshape(batch, length, -1, plan.head_size).sum(-1).swapaxes(1, 2)
    inputs = inputs | {"d_out": d_out, "lse": results["lse"], "delta": delta}

    def totals(tokens: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, length // tokens, width), jnp.float32)

    keys = totals(plan.dkv.keys)
    outputs: dict[str, Any] = {"d_k": query, "d_v": query, "v_total": keys}
    if plan.is_one_block:
        outputs |= {"d_q": query, "q_total": keys}
    grads = _call(passes.backward_dkv, static, blocks=plan.dkv, inputs=inputs, outputs=outputs)
    if not plan.is_one_block:
        outputs = {"d_q": query, "q_total": totals(plan.dq.queries)}
        grads |= _call(passes.backward_dq, static, blocks=plan.dq, inputs=inputs, outputs=outputs)
    q_bias, v_bias = (grads[name].sum((0, 1)).astype(query.dtype) for name in ("q_total", "v_total"))
    no_gradients = {name: np.zeros(array.shape, jax.dtypes.float0) for name, array in int_inputs.items()}
    return (grads["d_q"], grads["d_k"], grads["d_v"]), (q_bias, jnp.zeros_like(q_bias), v_bias), no_gradients


_attend.defvjp(_forward, _backward)

# The arrays that are split into blocks of tokens; a program gets all tokens of the other arrays.
_TILED: dict[Any, tuple[str, ...]] = {
    passes.draw: ("bits",),
    passes.forward: ("q", "out", "lse"),
    passes.backward_dkv: ("k", "v", "d_k", "d_v"),
    passes.backward_dq: ("q", "d_out", "lse", "delta", "d_q"),
}


def _call(
    kernel: Any,
    static: tuple[Tiling, bool],
    *,
    blocks: Blocks | None,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any],
) -> dict[str, Array]:
    """Run one pass on the grid (sequence, head, block of tokens); for `draw`, (sequence, group of heads, block)."""
    plan, interpret = static
    batch, length = inputs["segments"].shape
    if blocks is None:
        heads = outputs["bits"].shape[1]
        group_size = SHARED_BY if heads % SHARED_BY == 0 else 1
        blocks, tile, width = Blocks(queries=64, keys=BITS, warps=4, stages=1), 64, heads // group_size
    else:
        tile = blocks.keys if kernel is passes.backward_dkv else blocks.queries
        width, group_size = inputs["q"].shape[-1] // plan.head_size, 1

    def spec(name: str, array: Any) -> pl.BlockSpec:
        del array
        is_tiled = name in _TILED[kernel]
        tokens = tile if is_tiled else length

        def token_block(i: Any) -> Any:
            return i if is_tiled else 0

        match name:
            case "seeds":
                return pl.BlockSpec((1,), lambda b, h, i: (b,))
            case "first_head":
                return pl.BlockSpec((1,), lambda b, h, i: (0,))
            case "segments" | "positions":
                return pl.BlockSpec((None, length), lambda b, h, i: (b, 0))
            case "q_bias" | "v_bias":
                return pl.BlockSpec((plan.head_size,), lambda b, h, i: (h,))
            case "bits":
                return pl.BlockSpec(
                    (None, group_size, length // BITS, tokens), lambda b, h, i: (b, h, 0, token_block(i))
                )
            case "lse" | "delta":
                return pl.BlockSpec((None, None, tokens), lambda b, h, i: (b, h, token_block(i)))
            case "q_total" | "v_total":
                return pl.BlockSpec((None, None, plan.head_size), lambda b, h, i: (b, i, h))
            case _:
                return pl.BlockSpec((None, tokens, plan.head_size), lambda b, h, i: (b, token_block(i), h))

    return call_by_name(
        functools.partial(kernel, plan=plan, blocks=blocks),
        grid=(batch, width, length // tile),
        spec=spec,
        inputs=inputs,
        outputs=outputs,
        warps=blocks.warps,
        stages=blocks.stages,
        interpret=interpret,
        name=f"gpu_attention_{kernel.__name__}",
    )
