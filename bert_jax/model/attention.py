"""Compute attention; the only file that chooses a kernel.

Every implementation takes the same arguments, drops the same probabilities, and gives the same result within the
tolerance of its dtype (`tests/test_attention.py`). `reference` is the plain form that the others are tested against.

    auto       by the backend that the program is compiled for and the shapes: `pallas` on a TPU and, in bfloat16, on a
               GPU, else `reference`
    reference  einsum, softmax, einsum; on a GPU also the plain form of what stands behind a sub-layer (`residual_norm`)
    pallas     our kernels with dropout inside, for TPUs (`kernels/fused_attention.py`) and GPUs in bfloat16
               (`kernels/gpu_attention.py`); elsewhere the TPU's source, interpreted

Shapes that a kernel does not take (a row of one token that creates parameters) are computed by the reference.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.chip import is_gpu
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels.fused_attention import fused_attention, is_supported
from bert_jax.model.rotation import Rotation

# Added to a masked score (modeling.py of the original uses -10000, which is not always enough for float32 scores);
# finite, so that a row with no allowed key gives a uniform average and not NaN.
_MASKED = -1e30


@struct.dataclass
class AttentionMask:
    """Hold which key each query may look at, as the segments it follows from: a kernel needs no T x T array.

    A query sees the tokens of its own instance, in `left_to_right` only those up to itself (the ablation of Table 5). A
    padding query sees every token, which nobody reads, and which keeps padding equal to HuggingFace's.
    """

    segment_ids: Int[Array, "B T"]
    position_ids: Int[Array, "B T"]
    direction: str = struct.field(pytree_node=False)

    def dense(self) -> Bool[Array, "B 1 T T"]:
        """Return the mask of each query (last axis but one) and key (last axis)."""
        queries, keys = self.segment_ids[:, None, :, None], self.segment_ids[:, None, None, :]
        allowed = (keys > 0) & ((queries == keys) | (queries == 0))
        if self.direction == "left_to_right":
            allowed &= self.position_ids[:, None, :, None] >= self.position_ids[:, None, None, :]
        return allowed


@struct.dataclass
class Projected:
    """Queries, keys or values as their matmul left them, and what is still to be done: add a bias, then turn.

    The bias comes apart since a kernel sums its gradient itself. A rotation is between bias and attention, so both are
    done before any kernel where there is one.
    """

    values: Float[Array, "B T N K"]
    bias: Float[Array, "N K"] | None = None
    rotation: Rotation | None = None

    def with_bias(self) -> Float[Array, "B T N K"]:
        """Return the sum."""
        return self.values if self.bias is None else self.values + self.bias[None, None]

    def turned(self) -> "Projected":
        """Return the same without a rotation: the values turned, after their bias was added."""
        return self if self.rotation is None else Projected(self.rotation(self.with_bias()))

    def bias_or_zeros(self) -> Float[Array, "N K"]:
        """Return the bias, zeros where there is none: today's kernels always add one."""
        return jnp.zeros(self.values.shape[2:], self.values.dtype) if self.bias is None else self.bias


def attend(
    query: Projected,
    *,
    key: Projected,
    value: Projected,
    mask: AttentionMask,
    dropout: Dropout | None,
    rate: float,
    site: int,
    implementation: str,
) -> Float[Array, "B T N K"]:
    """Attend from each query to the values, by the implementation that the config names."""
    query, key, value = query.turned(), key.turned(), value.turned()
    dropping = AttentionDropout.create(dropout, rate=rate, site=site)
    # Their numbers travel with the heads, so that a device that holds some of them knows which.
    heads = jnp.arange(query.values.shape[2], dtype=jnp.int32)
    arguments = ((query, key, value), mask, dropping, heads)
    if implementation == "reference":
        return _reference(*arguments)
    on_tpu = _on_each_device(_tpu_kernel, query.values, is_supported=is_supported)
    # The choice falls when the program is lowered: a TPU program may be compiled on a machine that has none. The GPU's
    # kernels are named only where there is one, since lowering them asks which.
    on_gpu = {}
    if is_gpu():
        on_gpu = {"cuda": _on_each_device(_gpu_kernel, query.values, is_supported=_is_supported_on_gpu(query.values))}
    default = on_tpu if implementation == "pallas" else _reference
    return jax.lax.platform_dependent(*arguments, tpu=on_tpu, default=default, **on_gpu)


_Projections = tuple[Projected, Projected, Projected]
_Implementation = Callable[[_Projections, AttentionMask, AttentionDropout | None, Array], Array]


def _reference(
    projections: _Projections, mask: AttentionMask, dropping: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    query, key, value = (projected.with_bias() for projected in projections)
    scores = jnp.einsum("BqNK,BkNK->BNqk", query / math.sqrt(query.shape[-1]), key)
    scores = jnp.where(mask.dense(), scores.astype(jnp.float32), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropping is not None:
        keep = dropping.keep(heads, length=query.shape[1])
        weights = jnp.where(keep, weights * (1 / (1 - dropping.rate)), 0)
    return jnp.einsum("BNqk,BkNK->BqNK", weights.astype(query.dtype), value)


def _tpu_kernel(
    projections: _Projections, mask: AttentionMask, dropping: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    batch = len(projections[0].values)
    arrays = {
        "biases": tuple(projected.bias_or_zeros() for projected in projections),
        "segment_ids": mask.segment_ids,
        "position_ids": mask.position_ids,
        "seeds": jnp.zeros(batch, jnp.uint32) if dropping is None else dropping.seeds,
        "first_head": heads[0],
    }

    def kernel(values: tuple[Array, Array, Array], rest: dict[str, Any], *, interpret: bool) -> Array:
        rate = 0.0 if dropping is None else dropping.rate
        left_to_right = mask.direction == "left_to_right"
        return fused_attention(values, **rest, left_to_right=left_to_right, rate=rate, interpret=interpret)

    return jax.lax.platform_dependent(
        tuple(projected.values for projected in projections),
        arrays,
        tpu=functools.partial(kernel, interpret=False),
        default=functools.partial(kernel, interpret=True),
    )


def _gpu_kernel(
    projections: _Projections, mask: AttentionMask, dropping: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    # Optional: Pallas for GPUs, which jax calls deprecated, is imported where the chip is a GPU and nowhere else.
    from bert_jax.model.kernels.gpu_attention import gpu_attention, make_plan

    batch, length, _, size = projections[0].values.shape
    query, key, value = (projected.values for projected in projections)
    plan = make_plan(
        length=length,
        head_size=size,
        rate=0.0 if dropping is None else dropping.rate,
        left_to_right=mask.direction == "left_to_right",
    )
    return gpu_attention(
        (query, key, value),
        biases=(projections[0].bias_or_zeros(), projections[1].bias_or_zeros(), projections[2].bias_or_zeros()),
        segment_ids=mask.segment_ids,
        position_ids=mask.position_ids,
        seeds=jnp.zeros(batch, jnp.uint32) if dropping is None else dropping.seeds,
        first_head=heads[0],
        plan=plan,
    )


def _is_supported_on_gpu(values: Float[Array, "B T N K"]) -> Callable[..., bool]:
    def supported(*, length: int, heads: int, head_size: int) -> bool:
        from bert_jax.model.kernels import gpu_attention  # optional, as above

        del heads
        return gpu_attention.is_supported(length=length, head_size=head_size, dtype=values.dtype)

    return supported


def _on_each_device(
    kernel: _Implementation,
    values: Float[Array, "B T N K"],
    *,
    is_supported: Callable[..., bool],
) -> _Implementation:
    """Return `kernel` for projections like `values`, run by each device on its rows and heads: XLA cannot partition it.

    Where nothing is left to partition (one device, or inside another `shard_map`) it is called as it is; shapes that it
    does not take, or that do not divide over the devices, are the reference's.
    """
    batch, length, count, size = values.shape
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not nn.get_logical_axis_rules():
        return kernel if is_supported(length=length, heads=count, head_size=size) else _reference
    tokens = nn.logical_to_mesh_axes(("batch", "length", "heads", "head_size"))
    of_rows: Any = nn.logical_to_mesh_axes(("batch",))
    of_heads: Any = nn.logical_to_mesh_axes(("heads",))
    of_biases = nn.logical_to_mesh_axes(("heads", "head_size"))
    row_shares, head_shares = (_shares(spec[0], sizes=mesh.shape) for spec in (of_rows, of_heads))
    if batch % row_shares or count % head_shares:
        return _reference
    if not is_supported(length=length, heads=count // head_shares, head_size=size):
        return _reference

    def on_each(
        projections: _Projections, mask: AttentionMask, dropping: AttentionDropout | None, heads: Array
    ) -> Array:
        # As plain lists of arrays: a specification in an array's place would not pass for one.
        by_token, by_row = [part.values for part in projections], jax.tree.leaves((mask, dropping))
        structure = jax.tree.structure((mask, dropping))

        def local(by_token: Any, biases: Any, by_row: Any, heads: Any) -> Array:
            query, key, value = (Projected(*pair) for pair in zip(by_token, biases, strict=True))
            mask, dropping = jax.tree.unflatten(structure, by_row)
            return kernel((query, key, value), mask, dropping, heads)

        mapped = jax.shard_map(
            local, in_specs=(tokens, of_biases, of_rows, of_heads), out_specs=tokens, check_vma=False
        )
        return mapped(by_token, [part.bias for part in projections], by_row, heads)

    return on_each


def _shares(axes: str | tuple[str, ...] | None, *, sizes: Any) -> int:
    """Return into how many parts mesh axes divide a dimension."""
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
