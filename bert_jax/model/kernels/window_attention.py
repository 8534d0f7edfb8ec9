"""Attention to a window, with dropout, in a TPU kernel (Pallas) each for the forward and the backward pass.

Only the keys near a window of up to 128 tokens are computed, and no array of scores is in HBM: time and memory grow
with the length. The residuals are those of `fused_attention.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, UInt32

from bert_jax.model.dropout import SHARED_BY
from bert_jax.model.kernels import window_attention_passes as passes
from bert_jax.model.kernels.backends import TPU, pltpu
from bert_jax.model.kernels.head_pairs import HEAD_SIZE, LANES
from bert_jax.model.kernels.window_attention_passes import WindowTiling

MAX_WINDOW = LANES
MIN_LENGTH = 3 * LANES  # below, the fused kernel computes hardly more, and has no sides to read
_MAX_BLOCK = 4 * LANES  # tokens per grid step
# Scores per grid step, in squares of 128: a step has no loop, so this limits compile time and instructions.
_MAX_SCORES = 40

_Three = tuple[Array, Array, Array]
_Static = tuple[WindowTiling, bool]  # whether interpreted


def is_supported(*, length: int, heads: int, head_size: int, window: int) -> bool:
    """Return whether the kernels support these shapes (per device): pairs of heads of 64, T a multiple of 128."""
    fits = head_size == HEAD_SIZE and heads % 2 == 0 and length > 0 and length % LANES == 0
    return fits and 0 < window <= MAX_WINDOW and TPU.missing() is None


def window_attention(
    projections: tuple[Float[Array, "B T N K"], Float[Array, "B T N K"], Float[Array, "B T N K"]],
    *,
    segment_ids: Int[Array, "B T"],
    window: int,
    left_to_right: bool,
    seeds: UInt32[Array, " B"],
    first_head: Int[Array, ""],
    rate: float,
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Return attention within segments to keys at most `window` away, with dropout as in `fused_attention`.

    `projections` are query, key and value with their biases added. Instances are contiguous, so that distances in the
    sequence are those in the instance. `interpret` runs the kernels' source on any backend, slowly.
    """
    batch, length, heads, size = projections[0].shape
    plan = WindowTiling(
        length=length,
        block=block_size(length),
        window=window,
        heads=_heads_per_step(length=length, heads=heads),
        group_size=_group_size(heads),
        rate=rate,
        left_to_right=left_to_right,
    )
    flat = tuple(array.reshape(batch, length, heads * size) for array in projections)
    out: Array = _attend((plan, interpret), flat, (seeds, first_head.reshape(1), segment_ids[:, None, :]))
    return out.reshape(projections[0].shape)


def block_size(length: int) -> int:
    """Return the tokens per grid step."""
    return max(block for block in range(LANES, _MAX_BLOCK + 1, LANES) if length % block == 0)


def grid_steps(*, length: int, heads: int) -> int:
    """Return the grid steps per sequence of each pass, to count cycles from a schedule."""
    return length // block_size(length) * heads // _heads_per_step(length=length, heads=heads)


def _heads_per_step(*, length: int, heads: int) -> int:
    """Return the heads per grid step: whole groups of heads that share words."""
    group, scores = _group_size(heads), 2 * (block_size(length) // LANES + 1)  # of a head, backward
    return max(
        n for n in range(group, heads + 1, group) if heads % n == 0 and (n * scores <= _MAX_SCORES or n == group)
    )


def _group_size(heads: int) -> int:
    return SHARED_BY if heads % SHARED_BY == 0 else 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, projections: _Three, int_inputs: tuple[Array, ...]) -> Array:
    return _forward(static, projections, int_inputs)[0]


def _forward(static: _Static, projections: _Three, int_inputs: tuple[Array, ...]) -> tuple[Array, Any]:
    query, key, value = projections
    (plan, interpret), (batch, length, width) = static, query.shape
    groups = width // HEAD_SIZE // plan.group_size
    out, lse = _call(
        passes.forward,
        plan,
        inputs=(*int_inputs, query, key, value),
        own=(3,),
        outputs=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, groups, plan.group_size, length), jnp.float32),
        ],
        chunks=plan.own_chunks,
        scratch=[
            ((plan.heads // 2, LANES, len(plan.keys)), query.dtype),
            ((2, plan.most_keys, LANES), jnp.float32),
        ],
        matmuls=2,
        interpret=interpret,
    )
    return out, (query, key, value, out, lse, int_inputs)


def _backward(static: _Static, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    query, key, value, out, lse, int_inputs = residuals
    plan, interpret = static
    near, around = len(plan.keys), len(plan.all_chunks) * LANES
    sums = ((plan.group_size, HEAD_SIZE, near), jnp.float32)
    chunk_scores = ((2, plan.most_keys, LANES), query.dtype)
    gradients = _call(
        passes.backward,
        plan,
        inputs=(*int_inputs, query, key, value, out, lse, d_out),
        own=(),
        outputs=[jax.ShapeDtypeStruct(query.shape, query.dtype)] * 3,
        chunks=plan.all_chunks,
        scratch=[
            ((plan.heads // 2, LANES, near), query.dtype),
            *[((plan.heads // 2, LANES, around), query.dtype)] * 2,
            ((plan.heads, around), jnp.float32),
            *[sums] * 2,
            *[chunk_scores] * 2,
        ],
        matmuls=5,
        interpret=interpret,
    )
    return tuple(gradients), tuple(np.zeros(array.shape, jax.dtypes.float0) for array in int_inputs)


_attend.defvjp(_forward, _backward)


def _call(
    kernel: Any,
    plan: WindowTiling,
    *,
    inputs: Any,
    own: tuple[int, ...],
    outputs: Any,
    chunks: range,
    scratch: Any,
    matmuls: int,
    interpret: bool,
) -> tuple[Array, ...]:
    """Run one pass on the grid (sequence, block, heads of a step); inputs number `own` are read without their sides."""
    batch, length, width = inputs[3].shape
    heads, blocks = width // HEAD_SIZE, length // plan.block
    arrays, specs = [], []
    for number, array in enumerate(inputs[2:], 2):
        for side in (0,) if number in own else (-1, 0, 1):
            arrays.append(array)
            specs.append(_spec(array, plan=plan, side=side))
    # The mask bias of the chunks of queries, the segments of keys and, with dropout, the words of a chunk.
    shared = [
        ((len(chunks), plan.most_keys, LANES), jnp.float32),
        ((len(plan.all_chunks) * LANES, LANES), jnp.float32),
        ((plan.most_keys if plan.rate else 8, LANES), jnp.uint32),
    ]
    scores = batch * heads * blocks * LANES * sum(len(plan.keys_of(chunk)) for chunk in chunks)
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, blocks, heads // plan.heads),
            in_specs=specs,
            out_specs=[_spec(array, plan=plan, side=0) for array in outputs],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in (*shared, *scratch)],
        ),
        out_shape=outputs,
        # Sequences may be divided among the cores of a chip; all steps of a block use one mask bias.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=matmuls * 2 * scores * HEAD_SIZE,
            transcendentals=scores,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (*inputs, *outputs)),
        ),
        interpret=interpret,
        name=f"window_attention_{kernel.__name__}",
    )(*inputs[:2], *arrays)


def _spec(array: Any, *, plan: WindowTiling, side: int) -> pl.BlockSpec:
    """Return how an array is cut: the block of a step, or the chunk to its left (-1) or right (1)."""
    last = plan.length // LANES - 1
    size = LANES if side else plan.block

    def place(block: Any) -> Any:
        if not side:
            return block
        # At the ends of a sequence there is none: any other stands for it, and is masked.
        return jnp.clip(block * len(plan.own_chunks) + (-1 if side < 0 else len(plan.own_chunks)), 0, last)

    if array.ndim == 4:  # `lse`
        groups = plan.heads // plan.group_size
        return pl.BlockSpec((1, groups, plan.group_size, size), lambda b, i, g, *_: (b, g, 0, place(i)))
    if array.shape[1] == 1:  # segments
        return pl.BlockSpec((1, 1, size), lambda b, i, g, *_: (b, 0, place(i)))
    return pl.BlockSpec((1, size, plan.heads * HEAD_SIZE), lambda b, i, g, *_: (b, place(i), g))
