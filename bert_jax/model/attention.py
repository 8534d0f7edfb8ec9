"""Attention, and the choice of its kernel, which only this file makes.

All implementations take the same arguments, drop the same probabilities, and return the same result within the
tolerance of the dtype (`tests/test_attention.py`). `reference` is the plain form that the others are tested against.

    auto       depends on the backend that the program is compiled for: `pallas` on TPUs and, in bfloat16, on GPUs,
               else `reference`
    reference  einsum, softmax, einsum; this also selects the plain form of `residual_norm`
    pallas     our kernels with dropout, for TPUs (`kernels/fused_attention.py`) and for GPUs in bfloat16
               (`kernels/gpu_attention.py`); on other backends the TPU kernel is interpreted

The reference computes shapes that a kernel does not support, such as the single token that initializes parameters.
Attention to a window has no kernel: unless the config names the reference, it is computed in blocks
(`local_attention.py`) where the sequence is long enough.
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
from bert_jax.model.local_attention import is_worthwhile, local_attention
from bert_jax.model.rotation import Rotation

# The score of a masked key. (modeling.py of the original adds -10000, which is not always enough in float32.)
# It is finite, so that a query without allowed keys gets a uniform average and not NaN.
_MASKED = -1e30


@struct.dataclass
class AttentionMask:
    """The keys that each query may attend to, given by segments, so that kernels need no T x T array.

    A query attends to the tokens of its instance; with `left_to_right` only up to itself (the ablation of Table 5), and
    with a `window` only to keys at most `window` positions away (0: to all). A padding query attends to every token:
    nothing reads its output, which then equals HuggingFace's.
    """

    segment_ids: Int[Array, "B T"]
    position_ids: Int[Array, "B T"]
    direction: str = struct.field(pytree_node=False)
    window: int = struct.field(pytree_node=False, default=0)

    def dense(self) -> Bool[Array, "B 1 T T"]:
        """Return whether each query (second-to-last axis) may attend to each key (last axis)."""
        queries, keys = self.segment_ids[:, None, :, None], self.segment_ids[:, None, None, :]
        allowed = (keys > 0) & ((queries == keys) | (queries == 0))
        if self.direction == "left_to_right":
            allowed &= self.position_ids[:, None, :, None] >= self.position_ids[:, None, None, :]
        if self.window:
            distances = jnp.abs(self.position_ids[:, None, :, None] - self.position_ids[:, None, None, :])
            allowed &= (distances <= self.window) | (queries == 0)
        return allowed


@struct.dataclass
class Projected:
    """Queries, keys or values as the matmul returns them, with the bias to add and the rotation to apply.

    The bias is separate because a kernel sums its gradient itself. A rotation comes after the bias, so then both are
    applied before the kernel.
    """

    values: Float[Array, "B T N K"]
    bias: Float[Array, "N K"] | None = None
    rotation: Rotation | None = None

    def with_bias(self) -> Float[Array, "B T N K"]:
        """Return the values plus the bias."""
        return self.values if self.bias is None else self.values + self.bias[None, None]

    def rotated(self) -> "Projected":
        """Return the projection with bias and rotation applied; without a rotation, itself."""
        return self if self.rotation is None else Projected(self.rotation(self.with_bias()))

    def bias_or_zeros(self) -> Float[Array, "N K"]:
        """Return the bias, or zeros: the kernels always add one."""
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
    """Return the attention output of each query, computed by the implementation that the config names."""
    query, key, value = query.rotated(), key.rotated(), value.rotated()
    attention_dropout = AttentionDropout.create(dropout, rate=rate, site=site)
    # Global head numbers are sharded like the heads, so a device with a part of the heads knows which it has.
    heads = jnp.arange(query.values.shape[2], dtype=jnp.int32)
    arguments = ((query, key, value), mask, attention_dropout, heads)
    length = query.values.shape[1]
    is_local = 0 < mask.window < length - 1
    if implementation != "reference" and is_local and is_worthwhile(length=length, window=mask.window):
        return _local(*arguments)
    if implementation == "reference" or is_local:  # no kernel has windows
        return _reference(*arguments)
    on_tpu = _on_each_device(_tpu_kernel, query.values, is_supported=is_supported)
    # The platform is chosen at lowering: a TPU program may be compiled on a machine without TPUs. The GPU kernels are
    # included only if there is a GPU, because lowering them queries it.
    on_gpu = {}
    if is_gpu():
        on_gpu = {"cuda": _on_each_device(_gpu_kernel, query.values, is_supported=_is_supported_on_gpu(query.values))}
    default = on_tpu if implementation == "pallas" else _reference
    return jax.lax.platform_dependent(*arguments, tpu=on_tpu, default=default, **on_gpu)


_Projections = tuple[Projected, Projected, Projected]
_Implementation = Callable[[_Projections, AttentionMask, AttentionDropout | None, Array], Array]


def _reference(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    query, key, value = (projected.with_bias() for projected in projections)
    scores = jnp.einsum("BqNK,BkNK->BNqk", query / math.sqrt(query.shape[-1]), key)
    scores = jnp.where(mask.dense(), scores.astype(jnp.float32), _MASKED)
    probs = jax.nn.softmax(scores, axis=-1)
    if attention_dropout is not None:
        keep = attention_dropout.keep(heads, length=query.shape[1])
        probs = jnp.where(keep, probs * (1 / (1 - attention_dropout.rate)), 0)
    return jnp.einsum("BNqk,BkNK->BqNK", probs.astype(query.dtype), value)


def _local(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    query, key, value = (projected.with_bias() for projected in projections)
    return local_attention(
        query,
        key=key,
        value=value,
        segment_ids=mask.segment_ids,
        window=mask.window,
        left_to_right=mask.direction == "left_to_right",
        dropout=attention_dropout,
        heads=heads,
        masked=_MASKED,
    )


def _tpu_kernel(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    batch = len(projections[0].values)
    arrays = {
        "biases": tuple(projected.bias_or_zeros() for projected in projections),
        "segment_ids": mask.segment_ids,
        "position_ids": mask.position_ids,
        "seeds": jnp.zeros(batch, jnp.uint32) if attention_dropout is None else attention_dropout.seeds,
        "first_head": heads[0],
    }

    def kernel(values: tuple[Array, Array, Array], rest: dict[str, Any], *, interpret: bool) -> Array:
        rate = 0.0 if attention_dropout is None else attention_dropout.rate
        left_to_right = mask.direction == "left_to_right"
        return fused_attention(values, **rest, left_to_right=left_to_right, rate=rate, interpret=interpret)

    return jax.lax.platform_dependent(
        tuple(projected.values for projected in projections),
        arrays,
        tpu=functools.partial(kernel, interpret=False),
        default=functools.partial(kernel, interpret=True),
    )


def _gpu_kernel(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    # Optional: jax calls Pallas for GPUs (Triton) deprecated, so import it only if the chip is a GPU.
    from bert_jax.model.kernels.gpu_attention import gpu_attention, make_plan

    batch, length, _, size = projections[0].values.shape
    query, key, value = (projected.values for projected in projections)
    plan = make_plan(
        length=length,
        head_size=size,
        rate=0.0 if attention_dropout is None else attention_dropout.rate,
        left_to_right=mask.direction == "left_to_right",
    )
    return gpu_attention(
        (query, key, value),
        biases=(projections[0].bias_or_zeros(), projections[1].bias_or_zeros(), projections[2].bias_or_zeros()),
        segment_ids=mask.segment_ids,
        position_ids=mask.position_ids,
        seeds=jnp.zeros(batch, jnp.uint32) if attention_dropout is None else attention_dropout.seeds,
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
    """Return `kernel` for projections like `values`, mapped over devices: XLA cannot partition a kernel.

    Each device gets its sequences and heads. With one device, or inside another `shard_map`, the kernel is called as it
    is. The reference replaces it if it does not support the shapes, or if they do not divide over the devices.
    """
    batch, length, count, size = values.shape
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not nn.get_logical_axis_rules():
        return kernel if is_supported(length=length, heads=count, head_size=size) else _reference
    token_spec = nn.logical_to_mesh_axes(("batch", "length", "heads", "head_size"))
    row_spec: Any = nn.logical_to_mesh_axes(("batch",))
    head_spec: Any = nn.logical_to_mesh_axes(("heads",))
    bias_spec = nn.logical_to_mesh_axes(("heads", "head_size"))
    row_shards, head_shards = (_num_shards(spec[0], sizes=mesh.shape) for spec in (row_spec, head_spec))
    if batch % row_shards or count % head_shards:
        return _reference
    if not is_supported(length=length, heads=count // head_shards, head_size=size):
        return _reference

    def on_each(
        projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Array
    ) -> Array:
        # Pass plain lists of arrays: these classes check that their fields are arrays, not PartitionSpecs.
        by_token, by_row = [part.values for part in projections], jax.tree.leaves((mask, attention_dropout))
        structure = jax.tree.structure((mask, attention_dropout))

        def local(by_token: Any, biases: Any, by_row: Any, heads: Any) -> Array:
            query, key, value = (Projected(*pair) for pair in zip(by_token, biases, strict=True))
            mask, attention_dropout = jax.tree.unflatten(structure, by_row)
            return kernel((query, key, value), mask, attention_dropout, heads)

        mapped = jax.shard_map(
            local, in_specs=(token_spec, bias_spec, row_spec, head_spec), out_specs=token_spec, check_vma=False
        )
        return mapped(by_token, [part.bias for part in projections], by_row, heads)

    return on_each


def _num_shards(axes: str | tuple[str, ...] | None, *, sizes: Any) -> int:
    """Return the number of shards of a dimension over mesh axes."""
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
