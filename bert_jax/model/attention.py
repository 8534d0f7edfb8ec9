"""Attention, and the choice of its kernel, which only this file makes.

All implementations take the same arguments, drop the same probabilities, and return the same result within the
tolerance of the dtype (`tests/test_attention.py`). `reference` is the plain form that the others are tested against.

    auto       depends on the backend that the program is compiled for: `pallas` on TPUs and, in bfloat16, on GPUs,
               else `reference`
    reference  einsum, softmax, einsum; this also selects the plain form of `residual_norm`
    pallas     our kernels with dropout, for TPUs (`kernels/fused_attention.py`) and for GPUs in bfloat16
               (`kernels/gpu_attention.py`); on other backends the TPU kernel is interpreted

The reference computes shapes that a kernel does not support, such as the single token that initializes parameters.
Above 1,024 tokens, and without dropout, a TPU runs jax's splash attention (`kernels/long_attention.py`).

Attention to a window has a kernel for TPUs alone (`kernels/window_attention.py`). Without it, and unless the config
names the reference, it is computed in blocks (`local_attention.py`) where the sequence is long enough.
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
from bert_jax.model.chip import has_little_vmem, is_gpu
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels import fused_rotation, long_attention, window_attention
from bert_jax.model.kernels.fused_attention import MAX_LENGTH, fused_attention, is_supported
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

    def computed(self) -> Float[Array, "B T N K"]:
        """Return the values with the bias added and the rotation applied."""
        return self.rotated()._with_bias()

    def rotated(self) -> "Projected":
        """Return the projection with bias and rotation applied; without a rotation, itself."""
        return self if self.rotation is None else Projected(self.rotation(self._with_bias()))

    def rotated_on_tpu(self) -> "Projected":
        """Return the same, rotated by a kernel if it supports the shape; for use on each device."""
        length, heads, size = self.values.shape[1:]
        if self.rotation is None or not fused_rotation.is_supported(length=length, heads=heads, head_size=size):
            return self.rotated()
        tables = {"cosines": self.rotation.cosines, "sines": self.rotation.sines}
        return Projected(_interpreted_elsewhere(fused_rotation.rotate, self._with_bias(), tables))

    def _with_bias(self) -> Float[Array, "B T N K"]:
        return self.values if self.bias is None else self.values + self.bias[None, None]

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
    attention_dropout = AttentionDropout.create(dropout, rate=rate, site=site)
    # Global head numbers are sharded like the heads, so a device with a part of the heads knows which it has.
    heads = jnp.arange(query.values.shape[2], dtype=jnp.int32)
    arguments = ((query, key, value), mask, attention_dropout, heads)
    length = query.values.shape[1]
    if implementation == "reference":
        return _reference(*arguments)
    is_local = 0 < mask.window < length - 1
    plain, on_gpu = _reference, {}
    if is_local and is_worthwhile(length=length, window=mask.window):
        plain = _local
    item_bytes = query.values.dtype.itemsize
    kernel: _Implementation = _tpu_kernel
    supported = functools.partial(is_supported, item_bytes=item_bytes, little_vmem=has_little_vmem())
    if is_local and length >= window_attention.MIN_LENGTH:
        kernel = _tpu_window_kernel
        supported = functools.partial(window_attention.is_supported, window=mask.window)
    elif length > MAX_LENGTH:
        kernel = _tpu_long_kernel
        rate_now = 0.0 if attention_dropout is None else attention_dropout.rate
        supported = functools.partial(long_attention.is_supported, rate=rate_now)
    on_tpu = _on_each_device(kernel, query.values, is_supported=supported, otherwise=plain)
    # The platform is chosen at lowering: a TPU program may be compiled on a machine without TPUs. The GPU kernels are
    # included only if there is a GPU, because lowering them queries it.
    if is_gpu() and not is_local:  # no kernel for GPUs has windows
        gpu_supported = _is_supported_on_gpu(query.values)
        on_gpu = {"cuda": _on_each_device(_gpu_kernel, query.values, is_supported=gpu_supported, otherwise=plain)}
    default = on_tpu if implementation == "pallas" else plain
    return jax.lax.platform_dependent(*arguments, tpu=on_tpu, default=default, **on_gpu)


_Projections = tuple[Projected, Projected, Projected]
_Implementation = Callable[[_Projections, AttentionMask, AttentionDropout | None, Array], Array]


def _reference(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    query, key, value = (projected.computed() for projected in projections)
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
    query, key, value = (projected.computed() for projected in projections)
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
    projections = _rotated_on_tpu(projections)
    arrays = {
        "biases": tuple(projected.bias_or_zeros() for projected in projections),
        "position_ids": mask.position_ids,
    }
    values = tuple(projected.values for projected in projections)
    window = mask.window if mask.window < values[0].shape[1] - 1 else 0
    kernel = functools.partial(fused_attention, window=window)
    return _with_dropout(kernel, values, arrays, mask, attention_dropout, heads)


def _rotated_on_tpu(projections: _Projections) -> _Projections:
    query, key, value = projections
    return query.rotated_on_tpu(), key.rotated_on_tpu(), value


def _tpu_window_kernel(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    values = tuple(projected.computed() for projected in _rotated_on_tpu(projections))
    kernel = functools.partial(window_attention.window_attention, window=mask.window)
    return _with_dropout(kernel, values, {}, mask, attention_dropout, heads)


def _tpu_long_kernel(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    del attention_dropout, heads  # there is no dropout
    kernel = functools.partial(long_attention.long_attention, left_to_right=mask.direction == "left_to_right")
    values = tuple(projected.computed() for projected in _rotated_on_tpu(projections))
    return _interpreted_elsewhere(kernel, values, {"segment_ids": mask.segment_ids})


def _with_dropout(
    kernel: Callable[..., Array],
    values: tuple[Array, ...],
    arrays: dict[str, Any],
    mask: AttentionMask,
    attention_dropout: AttentionDropout | None,
    heads: Int[Array, " N"],
) -> Float[Array, "B T N K"]:
    """Call one of our kernels for TPUs with `arrays` and with what all of them take."""
    arrays = arrays | {
        "segment_ids": mask.segment_ids,
        "seeds": jnp.zeros(len(values[0]), jnp.uint32) if attention_dropout is None else attention_dropout.seeds,
        "first_head": heads[0],
    }
    rate = 0.0 if attention_dropout is None else attention_dropout.rate
    left_to_right = mask.direction == "left_to_right"
    return _interpreted_elsewhere(functools.partial(kernel, left_to_right=left_to_right, rate=rate), values, arrays)


def _interpreted_elsewhere(kernel: Callable[..., Array], values: Any, arrays: dict[str, Any]) -> Array:
    """Call a kernel for TPUs; on other backends its source is interpreted."""

    def call(values: Any, arrays: dict[str, Any], *, interpret: bool) -> Array:
        return kernel(values, **arrays, interpret=interpret)

    return jax.lax.platform_dependent(
        values,
        arrays,
        tpu=functools.partial(call, interpret=False),
        default=functools.partial(call, interpret=True),
    )


def _gpu_kernel(
    projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Int[Array, " N"]
) -> Float[Array, "B T N K"]:
    # Optional: jax calls Pallas for GPUs (Triton) deprecated, so import it only if the chip is a GPU.
    from bert_jax.model.kernels.gpu_attention import gpu_attention, make_plan

    batch, length, _, size = projections[0].values.shape
    query, key, value = (projected.rotated() for projected in projections)
    plan = make_plan(
        length=length,
        head_size=size,
        rate=0.0 if attention_dropout is None else attention_dropout.rate,
        left_to_right=mask.direction == "left_to_right",
    )
    return gpu_attention(
        (query.values, key.values, value.values),
        biases=(query.bias_or_zeros(), key.bias_or_zeros(), value.bias_or_zeros()),
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
    otherwise: _Implementation,
) -> _Implementation:
    """Return `kernel` for projections like `values`, mapped over devices: XLA cannot partition a kernel.

    Each device gets its sequences and heads. With one device, or inside another `shard_map`, the kernel is called as it
    is. `otherwise` replaces it if it does not support the shapes, or if they do not divide over the devices.
    """
    batch, length, count, size = values.shape
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not nn.get_logical_axis_rules():
        return kernel if is_supported(length=length, heads=count, head_size=size) else otherwise
    token_spec = nn.logical_to_mesh_axes(("batch", "length", "heads", "head_size"))
    row_spec: Any = nn.logical_to_mesh_axes(("batch",))
    head_spec: Any = nn.logical_to_mesh_axes(("heads",))
    bias_spec = nn.logical_to_mesh_axes(("heads", "head_size"))
    row_shards, head_shards = (_num_shards(spec[0], sizes=mesh.shape) for spec in (row_spec, head_spec))
    if batch % row_shards or count % head_shards:
        return otherwise
    if not is_supported(length=length, heads=count // head_shards, head_size=size):
        return otherwise

    def on_each(
        projections: _Projections, mask: AttentionMask, attention_dropout: AttentionDropout | None, heads: Array
    ) -> Array:
        # Pass plain lists of arrays: these classes check that their fields are arrays, not PartitionSpecs.
        rotations = [part.rotation for part in projections]
        by_token, structure = (
            [part.values for part in projections],
            jax.tree.structure((mask, attention_dropout, rotations)),
        )
        by_row = jax.tree.leaves((mask, attention_dropout, rotations))

        def local(by_token: Any, biases: Any, by_row: Any, heads: Any) -> Array:
            mask, attention_dropout, rotations = jax.tree.unflatten(structure, by_row)
            query, key, value = (Projected(*parts) for parts in zip(by_token, biases, rotations, strict=True))
            return kernel((query, key, value), mask, attention_dropout, heads)

        mapped = jax.shard_map(
            local, in_specs=(token_spec, bias_spec, row_spec, head_spec), out_specs=token_spec, check_vma=False
        )
        return mapped(by_token, [part.bias for part in projections], by_row, heads)

    return on_each


def _num_shards(axes: str | tuple[str, ...] | None, *, sizes: Any) -> int:
    """Return the number of shards of a dimension over mesh axes."""
    return math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
