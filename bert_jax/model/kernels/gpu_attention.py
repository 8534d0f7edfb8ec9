"""Attention with dropout in GPU kernels (Pallas, through Triton), forward and backward: no array of T x T in memory.

FlashAttention-2 (Dao 2023): a program holds a block of queries (forward, gradient of the queries) or of keys (gradients
of keys and values) of one head and walks over the others (`gpu_attention_passes.py`); the backward passes compute the
probabilities anew from the log-sum-exp of each query. Rows of one block of keys (T = 128, the length of most of
pre-training) need one backward kernel: all scores of a query are at hand, so its gradient is too.

Dropped is by the hash of `attention_dropout`, which every implementation shares; cuDNN's own dropout would take its
masks from a generator with a seed fixed in the program. The hash costs more integer work than the rest of a pass, so a
kernel of its own draws it once, four heads at a time, and leaves a bit a probability for the three passes.

Heads are read and written where the projections left them, `[B, T, N * K]`: nothing is transposed in memory, and the
projections' biases are added, and their gradients summed, on the way. The keys' bias adds the same to all scores of a
query, so it changes nothing and has no gradient.
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

_HEAD_SIZES = (16, 32, 64, 128)  # what a tensor core's tile and a block's registers take
_SHORTEST = 64  # tokens; rows shorter than a block are the reference's

_Three = tuple[Array, Array, Array]


def is_supported(*, length: int, head_size: int, dtype: Any) -> bool:
    """Say whether the kernels take these shapes: bfloat16, whole blocks of 64."""
    return dtype == jnp.bfloat16 and head_size in _HEAD_SIZES and length % _SHORTEST == 0 and length > 0


def make_plan(*, length: int, head_size: int, rate: float, left_to_right: bool) -> Tiling:
    """Return the blocks: at 128 and 512 with heads of 64 the fastest on an H200 (benchmarks/RESULTS.md), else alike.

    Heads of 128 have smaller blocks, for the shared memory of smaller chips.
    """
    if head_size > 64:
        to_keys = Blocks(queries=32, keys=64, warps=4, stages=1)
    elif length in (64, 128):
        to_keys = Blocks(queries=64, keys=length, warps=length // 16, stages=1)
    else:
        to_keys = Blocks(queries=32, keys=128 if length % 128 == 0 else 64, warps=4, stages=3)
    return Tiling(
        length=length,
        head_size=head_size,
        rate=rate,
        left_to_right=left_to_right,
        forward=Blocks(queries=128 if length % 128 == 0 else 64, keys=64, warps=4, stages=3),
        to_keys=to_keys,
        to_queries=Blocks(queries=64, keys=64, warps=4, stages=3),
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
    """Attend within segments, dropping probabilities at `plan.rate`.

    `projections` are query, key and value before their `biases` are added. `first_head` is the number of the first head
    among those of all devices; where the heads are whole groups of four, so is it a multiple of four. `interpret` runs
    the kernels' source on any backend, slowly.
    """
    batch, length, heads, size = projections[0].shape
    flat = tuple(array.reshape(batch, length, heads * size) for array in projections)
    places = {"segments": segment_ids, "positions": position_ids, "seeds": seeds, "first_head": first_head.reshape(1)}
    out: Array = _attend((plan, interpret), flat, tuple(bias.reshape(heads * size) for bias in biases), places)
    return out.reshape(projections[0].shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: tuple[Tiling, bool], projections: _Three, biases: _Three, places: dict[str, Array]) -> Array:
    return _forward(static, projections, biases, places)[0]


def _forward(
    static: tuple[Tiling, bool], projections: _Three, biases: _Three, places: dict[str, Array]
) -> tuple[Array, Any]:
    plan, query = static[0], projections[0]
    batch, length, width = query.shape
    heads = width // plan.head_size
    inputs = {name: places[name] for name in ("segments", "positions")}
    inputs |= dict(zip(("q", "k", "v"), projections, strict=True)) | {"q_bias": biases[0], "v_bias": biases[2]}
    if plan.rate:
        bits = jax.ShapeDtypeStruct((batch, heads, length // BITS, length), jnp.int32)
        inputs |= _call(passes.draw, static, blocks=None, inputs=places, outputs={"bits": bits})
    level = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    results = _call(passes.forward, static, blocks=plan.forward, inputs=inputs, outputs={"out": query, "lse": level})
    return results["out"], (inputs, results, places)


def _backward(static: tuple[Tiling, bool], kept: Any, d_out: Array) -> tuple[Any, ...]:
    inputs, results, places = kept
    plan, query = static[0], inputs["q"]
    batch, length, width = query.shape
    products = d_out.astype(jnp.float32) * results["out"].astype(jnp.float32)
    delta = products.reshape(batch, length, -1, plan.head_size).sum(-1).swapaxes(1, 2)
    inputs = inputs | {"d_out": d_out, "lse": results["lse"], "delta": delta}

    def totals(tokens: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, length // tokens, width), jnp.float32)

    keys = totals(plan.to_keys.keys)
    outputs: dict[str, Any] = {"d_k": query, "d_v": query, "v_total": keys}
    if plan.is_one_block:
        outputs |= {"d_q": query, "q_total": keys}
    grads = _call(passes.to_keys, static, blocks=plan.to_keys, inputs=inputs, outputs=outputs)
    if not plan.is_one_block:
        outputs = {"d_q": query, "q_total": totals(plan.to_queries.queries)}
        grads |= _call(passes.to_queries, static, blocks=plan.to_queries, inputs=inputs, outputs=outputs)
    q_bias, v_bias = (grads[name].sum((0, 1)).astype(query.dtype) for name in ("q_total", "v_total"))
    no_gradients = {name: np.zeros(place.shape, jax.dtypes.float0) for name, place in places.items()}
    return (grads["d_q"], grads["d_k"], grads["d_v"]), (q_bias, jnp.zeros_like(q_bias), v_bias), no_gradients


_attend.defvjp(_forward, _backward)

# What a program sees a block of; of the rest it sees the row of its head whole.
_TILED: dict[Any, tuple[str, ...]] = {
    passes.draw: ("bits",),
    passes.forward: ("q", "out", "lse"),
    passes.to_keys: ("k", "v", "d_k", "d_v"),
    passes.to_queries: ("q", "d_out", "lse", "delta", "d_q"),
}


def _call(
    kernel: Any,
    static: tuple[Tiling, bool],
    *,
    blocks: Blocks | None,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any],
) -> dict[str, Array]:
    """Run a pass over the grid (row, head, block of tokens), or, to draw bits, (row, group of heads, block)."""
    plan, interpret = static
    batch, length = inputs["segments"].shape
    if blocks is None:
        heads = outputs["bits"].shape[1]
        together = SHARED_BY if heads % SHARED_BY == 0 else 1
        blocks, tile, width = Blocks(queries=64, keys=BITS, warps=4, stages=1), 64, heads // together
    else:
        tile = blocks.keys if kernel is passes.to_keys else blocks.queries
        width, together = inputs["q"].shape[-1] // plan.head_size, 1

    def spec(name: str, array: Any) -> pl.BlockSpec:
        del array
        is_tiled = name in _TILED[kernel]
        tokens = tile if is_tiled else length

        def place(i: Any) -> Any:
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
                return pl.BlockSpec((None, together, length // BITS, tokens), lambda b, h, i: (b, h, 0, place(i)))
            case "lse" | "delta":
                return pl.BlockSpec((None, None, tokens), lambda b, h, i: (b, h, place(i)))
            case "q_total" | "v_total":
                return pl.BlockSpec((None, None, plan.head_size), lambda b, h, i: (b, i, h))
            case _:
                return pl.BlockSpec((None, tokens, plan.head_size), lambda b, h, i: (b, place(i), h))

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
