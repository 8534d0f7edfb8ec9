"""Attention over sequences longer than the fused kernel takes, without dropout: jax's splash attention for TPUs.

It goes through blocks of keys with an online softmax (FlashAttention), so that no T x T array is in HBM.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.model.kernels import fused_attention
from bert_jax.model.kernels.backends import SPLASH, splash

_BLOCKS = (1024, 512, 256, 128)  # tokens per grid step
_COMPUTED = 512  # keys of a step that are computed at a time


def is_supported(*, length: int, heads: int, head_size: int, rate: float) -> bool:
    """Return whether the kernel computes these shapes (per device), and is needed for them."""
    del heads
    fits = head_size % 64 == 0 and length % _BLOCKS[-1] == 0 and length > fused_attention.MAX_LENGTH
    return fits and rate == 0.0 and SPLASH.missing() is None


def long_attention(
    projections: tuple[Float[Array, "B T N K"], Float[Array, "B T N K"], Float[Array, "B T N K"]],
    *,
    segment_ids: Int[Array, "B T"],
    left_to_right: bool,
    interpret: bool = False,
) -> Float[Array, "B T N K"]:
    """Return attention within segments; `projections` are query, key and value with their biases added.

    Padding attends to padding, whose output nothing reads. Instances are contiguous, so that the order in the sequence
    is that in the instance. `interpret` runs the kernel's source on any backend, slowly.
    """
    length, heads, size = projections[0].shape[1:]
    query, key, value = (array.swapaxes(1, 2) for array in projections)
    query = (query.astype(jnp.float32) * size**-0.5).astype(query.dtype)  # exact for sizes of 64
    kernel = _kernel(length=length, heads=heads, left_to_right=left_to_right, interpret=interpret)
    segments = splash.SegmentIds(q=segment_ids, kv=segment_ids)
    out: Array = jax.vmap(kernel)(query, key, value, segments)
    return out.swapaxes(1, 2)


def _kernel(*, length: int, heads: int, left_to_right: bool, interpret: bool) -> Any:
    mask = (splash.CausalMask if left_to_right else splash.FullMask)((length, length))
    block = _block_size(length)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=min(block, _COMPUTED),
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=min(block, _COMPUTED),
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
    )


def pairs_of_blocks(length: int) -> int:
    """Return the grid steps per head of each pass, to count cycles from a schedule."""
    return (length // _block_size(length)) ** 2


def _block_size(length: int) -> int:
    """Return the queries, and the keys, of a grid step."""
    return next(block for block in _BLOCKS if length % block == 0)
