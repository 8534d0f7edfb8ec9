"""Attention with dropout in one TPU kernel (Pallas), forward and backward: no array of T x T leaves VMEM.

For BERT's lengths a row's scores fit in VMEM, so the softmax is the plain one, with the exact maximum. The backward
pass computes the probabilities anew from the log-sum-exp of each query (as FlashAttention does, Dao et al. 2022,
section 3.1) and drops by the same hash: kept are q, k, v, the output and 4 bytes a head and query.

Two TPU v5e figures, by the compiler's own schedule (`benchmarks/attention_tpu.py`), forward and backward of 16 heads:
5,700 cycles a row of 128 and 54,000 a row of 512, of which the matrix units are busy 2,600 and 41,000.
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
from bert_jax.model.kernels.fused_attention_passes import HEAD_SIZE, LANES, Tiling

MAX_LENGTH = 512  # the compiler's default of 16 MiB of VMEM a kernel holds what a step needs up to here
# Of one array in one step of the grid, whose code has no loop, so that the compiler fills gaps across blocks of queries
# and heads. Limits are VMEM, the time to compile (8 s both passes at T = 512) and the 65,536 instructions that a core
# holds: at most 22,000 here on v5e, v5p and v6e. On v4 the forward pass at 512 has 97,000, fetched part by part as it
# runs; that still takes 13 % fewer cycles than loops, fetching not counted.
_FORWARD_BYTES, _BACKWARD_BYTES = 1024 * 1024, 512 * 1024

_Three = tuple[Array, Array, Array]
_Static = tuple[Tiling, Tiling, bool]  # of the forward pass, of the backward pass, whether it is interpreted


def is_supported(*, length: int, heads: int, head_size: int) -> bool:
    """Say whether the kernel takes these shapes (of one device): heads of 64 in pairs, T in whole registers of 128."""
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
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Attend within segments, dropping probabilities at `rate` by the hash of `attention_dropout`.

    `projections` are query, key and value before their `biases` are added. The biases come apart since the kernel sums
    their gradients as it goes: XLA cannot fuse a sum with a kernel, and three sums over the results cost 41,000 cycles
    a row of 512. `first_head` is the number of the first head among those of all devices. `interpret` runs the
    kernel's source on any backend, slowly.
    """
    batch, length, heads, size = projections[0].shape
    plans = (
        Tiling(length, per_step, _together(heads), rate, left_to_right)
        for per_step in _heads_per_step(length=length, heads=heads, item_bytes=projections[0].dtype.itemsize)
    )
    flat = tuple(array.reshape(batch, length, heads * size) for array in projections)
    places = (seeds, first_head.reshape(1), segment_ids[:, None, :], position_ids[:, None, :])
    out: Array = _attend((*plans, interpret), flat, tuple(bias.reshape(heads * size) for bias in biases), places)
    return out.reshape(projections[0].shape)


def grid_steps(name: str, *, length: int, heads: int, item_bytes: int) -> int:
    """Return the steps of the grid in which pass `name` works through one row, for counting a schedule."""
    of_forward, of_backward = _heads_per_step(length=length, heads=heads, item_bytes=item_bytes)
    return heads // (of_backward if "backward" in name else of_forward)


def _heads_per_step(*, length: int, heads: int, item_bytes: int) -> tuple[int, int]:
    """Return the heads of one step of the grid, forward and backward: those that share words stay together."""
    choices = [n for n in range(_together(heads), heads + 1, _together(heads)) if heads % n == 0]

    def most(block_bytes: int) -> int:
        return max(n for n in choices if n * HEAD_SIZE * length * item_bytes <= block_bytes)

    return most(_FORWARD_BYTES), most(_BACKWARD_BYTES)


def _together(heads: int) -> int:
    return SHARED_BY if heads % SHARED_BY == 0 else 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, projections: _Three, biases: _Three, places: tuple[Array, ...]) -> Array:
    return _forward(static, projections, biases, places)[0]


def _forward(static: _Static, projections: _Three, biases: _Three, places: tuple[Array, ...]) -> tuple[Array, Any]:
    query, key, value = (array + bias for array, bias in zip(projections, biases, strict=True))
    (plan, _, interpret), (batch, length, width) = static, query.shape
    statistics = jax.ShapeDtypeStruct((batch, width // HEAD_SIZE // plan.together, plan.together, length), jnp.float32)
    out, lse = _call(
        passes.forward,
        plan,
        inputs=(*places, query, key, value),
        outputs=[jax.ShapeDtypeStruct(query.shape, query.dtype), statistics],
        scratch=[
            ((plan.heads // 2, LANES, length), query.dtype),
            ((2, length, plan.block), jnp.float32),
        ],
        matmuls=2,
        interpret=interpret,
    )
    return out, (query, key, value, out, lse, places)


def _backward(static: _Static, kept: Any, d_out: Array) -> tuple[Any, ...]:
    query, key, value, out, lse, places = kept
    (_, plan, interpret), (batch, length, width) = static, query.shape
    turned = ((plan.heads // 2, LANES, length), query.dtype)
    sums = ((plan.together, HEAD_SIZE, length), jnp.float32)
    staged = ((2, length, plan.block), query.dtype)
    results = _call(
        passes.backward,
        plan,
        inputs=(*places, query, key, value, out, lse, d_out),
        outputs=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (query, key, value)]
        + [jax.ShapeDtypeStruct((batch, 1, width), jnp.float32)] * 3,
        scratch=[turned, turned, turned, ((plan.heads, length), jnp.float32), sums, sums, staged, staged],
        matmuls=5,
        interpret=interpret,
    )
    no_gradients = tuple(np.zeros(place.shape, jax.dtypes.float0) for place in places)
    return tuple(results[:3]), tuple(total.sum((0, 1)).astype(query.dtype) for total in results[3:]), no_gradients


_attend.defvjp(_forward, _backward)


def _call(
    kernel: Any, plan: Tiling, *, inputs: Any, outputs: Any, scratch: Any, matmuls: int, interpret: bool
) -> tuple[Array, ...]:
    """Run a pass over the grid (row, heads of a step)."""
    batch, length, width = inputs[4].shape
    row = pl.BlockSpec((1, 1, length), lambda b, g, *_: (b, 0, 0))
    tokens = pl.BlockSpec((1, length, plan.heads * HEAD_SIZE), lambda b, g, *_: (b, 0, g))
    totals = pl.BlockSpec((1, 1, plan.heads * HEAD_SIZE), lambda b, g, *_: (b, 0, g))
    statistics = pl.BlockSpec((1, plan.heads // plan.together, plan.together, length), lambda b, g, *_: (b, g, 0, 0))

    def spec(array: Any) -> pl.BlockSpec:
        if array.ndim == 4:
            return statistics
        return totals if array.shape[1] == 1 else tokens

    # Bias of the row and, where something is dropped, the words of a block.
    shared = [((length, length), jnp.float32), ((length if plan.rate else 8, plan.block), jnp.uint32)]
    heads = width // HEAD_SIZE
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads // plan.heads),
            in_specs=[row, row, *map(spec, inputs[4:])],
            out_specs=[spec(array) for array in outputs],
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in (*shared, *scratch)],
        ),
        out_shape=outputs,
        # Rows may be shared out between the cores of a chip; the steps of a row use one bias.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=matmuls * 2 * batch * heads * length**2 * HEAD_SIZE,
            transcendentals=batch * heads * length**2,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in (*inputs, *outputs)),
        ),
        interpret=interpret,
        name=f"attention_{kernel.__name__}",
    )(*inputs)
