"""Attention with dropout in a TPU kernel (Pallas) each for the forward and the backward pass; no T x T array in HBM.

For BERT's lengths, the scores of a sequence fit in VMEM, so the softmax is the plain one, with the exact maximum. The
backward pass recomputes the probabilities from the log-sum-exp (`lse`) of each query, as in FlashAttention (Dao et al.
2022, section 3.1), and the dropout mask from the same hash. The residuals are q, k, v, the output, and 4 bytes per head
and query for `lse`.

Cycles on a TPU v5e by the compiler's schedule (`benchmarks/attention_tpu.py`), forward and backward, 16 heads: 5,700
per sequence of 128 tokens and 54,000 per sequence of 512, of which the matrix units are busy for 2,600 and 41,000.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, UInt32

from bert_jax.model.dropout import SHARED_BY
from bert_jax.model.kernels import fused_attention_passes as passes
from bert_jax.model.kernels.backends import TPU, pltpu
from bert_jax.model.kernels.fused_attention_passes import LONGEST_UNROLLED, Tiling
from bert_jax.model.kernels.head_pairs import HEAD_SIZE, LANES

MAX_LENGTH = 1024
_VMEM_OF_LONG = 32 * 1024 * 1024  # for float32: 20.7 MiB at 1,024 tokens; the compiler's default is 16
# Bytes of one array in a grid step. Up to 512 tokens, a step has no loop, so that the compiler overlaps blocks of
# queries and heads. Longer sequences have two heads per step.
# The limits are VMEM, the compile time (8 s for both passes at T = 512) and the 65,536 instructions that a core holds.
# The kernels have at most 22,000 on v5e, v5p and v6e. On v4, the forward pass at 512 has 97,000, which are fetched in
# parts as it runs; without the time of fetching, that still takes 13 % fewer cycles than loops.
_FORWARD_BYTES, _BACKWARD_BYTES = 1024 * 1024, 512 * 1024

_Three = tuple[Array, Array, Array]
_Static = tuple[Tiling, Tiling, bool]  # forward pass, backward pass, interpreted


def is_supported(*, length: int, heads: int, head_size: int, item_bytes: int = 2, little_vmem: bool = False) -> bool:
    """Return whether the kernels support these shapes (per device): pairs of heads of 64, T a multiple of 128.

    With `little_vmem` (16 MiB), long sequences in float32 do not fit.
    """
    if little_vmem and item_bytes > 2 and length > LONGEST_UNROLLED:
        return False
    fits = head_size == HEAD_SIZE and heads % 2 == 0 and length % LANES == 0 and 0 < length <= MAX_LENGTH
    return fits and TPU.missing() is None


def fused_attention(
    projections: tuple[Float[Array, "B T N K"], Float[Array, "B T N K"], Float[Array, "B T N K"]],
    *,
    biases: tuple[Float[Array, "N K"], Float[Array, "N K"], Float[Array, "N K"]],
    segment_ids: Int[Array, "B T"],
    position_ids: Int[Array, "B T"],
    left_to_right: bool,
    seeds: UInt32[Array, " B"],
    first_head: Int[Array, ""],
    rate: float,
    window: int = 0,
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Return attention within segments, with dropout of probabilities at `rate` by the hash of `attention_dropout`.

    `projections` are query, key and value before their `biases` are added. The biases are separate because the kernel
    also sums their gradients: XLA cannot fuse a sum with a kernel, and three separate sums cost 41,000 cycles per
    sequence of 512 tokens. `first_head` is the global number of this device's first head. With a `window`, all pairs of
    positions are computed, and those farther apart are masked. `interpret` runs the kernels' source on any backend,
    slowly.
    """
    batch, length, heads, size = projections[0].shape
    plans = (
        Tiling(length, per_step, _group_size(heads, length=length), rate, left_to_right, window)
        for per_step in _heads_per_step(length=length, heads=heads, item_bytes=projections[0].dtype.itemsize)
    )
    flat = tuple(array.reshape(batch, length, heads * size) for array in projections)
    int_inputs = (seeds, first_head.reshape(1), segment_ids[:, None, :], position_ids[:, None, :])
    out: Array = _attend((*plans, interpret), flat, tuple(bias.reshape(heads * size) for bias in biases), int_inputs)
    return out.reshape(projections[0].shape)


def loop_rounds(name: str, *, length: int, heads: int, item_bytes: int) -> list[int]:
    """Return the grid steps per sequence of the pass `name` and the rounds of its loop, to count cycles."""
    heads_per_step = _heads_per_step(length=length, heads=heads, item_bytes=item_bytes)["backward" in name]
    plan = Tiling(length, heads_per_step, _group_size(heads, length=length), rate=0.0, left_to_right=False)
    return [heads // heads_per_step, plan.blocks if plan.loops else 1]


def _heads_per_step(*, length: int, heads: int, item_bytes: int) -> tuple[int, int]:
    """Return the heads per grid step of forward and backward pass: whole groups of heads that share words."""
    fewest = _group_size(heads, length=length)
    if length > LONGEST_UNROLLED:
        return fewest, fewest
    choices = [n for n in range(fewest, heads + 1, fewest) if heads % n == 0]

    def largest(block_bytes: int) -> int:
        return max(n for n in choices if n * HEAD_SIZE * length * item_bytes <= block_bytes)

    return largest(_FORWARD_BYTES), largest(_BACKWARD_BYTES)


def _group_size(heads: int, *, length: int) -> int:
    """Return the heads that share words; of long sequences, only two fit into a step."""
    return SHARED_BY if heads % SHARED_BY == 0 and length <= LONGEST_UNROLLED else 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, projections: _Three, biases: _Three, int_inputs: tuple[Array, ...]) -> Array:
    return _forward(static, projections, biases, int_inputs)[0]


def _forward(static: _Static, projections: _Three, biases: _Three, int_inputs: tuple[Array, ...]) -> tuple[Array, Any]:
    query, key, value = (array + bias[None, None] for array, bias in zip(projections, biases, strict=True))
    (plan, _, interpret), (batch, length, width) = static, query.shape
    lse_shape = jax.ShapeDtypeStruct(
        (batch, width // HEAD_SIZE // plan.group_size, plan.group_size, length), jnp.float32
    )
    out, lse = _call(
        passes.forward,
        plan,
        inputs=(*int_inputs, query, key, value),
        outputs=[jax.ShapeDtypeStruct(query.shape, query.dtype), lse_shape],
        scratch=[
            ((plan.heads // 2, LANES, length), query.dtype),
            ((2, length, plan.block), jnp.float32),
        ],
        matmuls=2,
        interpret=interpret,
    )
    return out, (query, key, value, out, lse, int_inputs)


def _backward(static: _Static, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    query, key, value, out, lse, int_inputs = residuals
    (_, plan, interpret), (batch, length, width) = static, query.shape
    transposed = ((plan.heads // 2, LANES, length), query.dtype)
    sums = ((plan.group_size, HEAD_SIZE, length), jnp.float32)
    block_scores = ((2, length, plan.block), query.dtype)
    results = _call(
        passes.backward,
        plan,
        inputs=(*int_inputs, query, key, value, out, lse, d_out),
        outputs=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (query, key, value)]
        + [jax.ShapeDtypeStruct((batch, 1, width), jnp.float32)] * 3,
        scratch=[
            transposed,
            transposed,
            transposed,
            ((plan.heads, length), jnp.float32),
            sums,
            sums,
            block_scores,
            block_scores,
        ],
        matmuls=5,
        interpret=interpret,
    )
    no_gradients = tuple(np.zeros(array.shape, jax.dtypes.float0) for array in int_inputs)
    return tuple(results[:3]), tuple(total.sum((0, 1)).astype(query.dtype) for total in results[3:]), no_gradients


_attend.defvjp(_forward, _backward)


def _call(
    kernel: Any, plan: Tiling, *, inputs: Any, outputs: Any, scratch: Any, matmuls: int, interpret: bool
) -> tuple[Array, ...]:
    """Run one pass on the grid (sequence, heads of a step)."""
    batch, length, width = inputs[4].shape
    sequence = pl.BlockSpec((1, 1, length), lambda b, g, *_: (b, 0, 0))
    tokens = pl.BlockSpec((1, length, plan.heads * HEAD_SIZE), lambda b, g, *_: (b, 0, g))
    totals = pl.BlockSpec((1, 1, plan.heads * HEAD_SIZE), lambda b, g, *_: (b, 0, g))
    lse_spec = pl.BlockSpec((1, plan.heads // plan.group_size, plan.group_size, length), lambda b, g, *_: (b, g, 0, 0))

    def spec(array: Any) -> pl.BlockSpec:
        if array.ndim == 4:
            return lse_spec
        return totals if array.shape[1] == 1 else tokens

    # The mask bias of the sequence and, with dropout, the words of a block.
    shared = [((length, length), jnp.float32), ((length if plan.rate else 8, plan.block), jnp.uint32)]
    heads = width // HEAD_SIZE
    is_large = length > LONGEST_UNROLLED and inputs[4].dtype.itemsize > 2
    more_memory = {"vmem_limit_bytes": _VMEM_OF_LONG} if is_large else {}
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads // plan.heads),
            in_specs=[sequence, sequence, *map(spec, inputs[4:])],
            out_specs=[spec(array) for array in outputs],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in (*shared, *scratch)],
        ),
        out_shape=outputs,
        # Sequences may be divided among the cores of a chip; all steps of a sequence use one mask bias.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), **more_memory),
        cost_estimate=pl.CostEstimate(
            flops=matmuls * 2 * batch * heads * length**2 * HEAD_SIZE,
            transcendentals=batch * heads * length**2,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (*inputs, *outputs)),
        ),
        interpret=interpret,
        name=f"attention_{kernel.__name__}",
    )(*inputs)
