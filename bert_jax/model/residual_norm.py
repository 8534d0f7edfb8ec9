"""Residual connection and LayerNorm after a sub-layer, and the choice of the kernel, which only this file makes.

The plain form is a sequence of elementwise operations, which the TPU compiler fuses with the matmul before them. On
TPUs the backward pass is a kernel, on some TPUs the forward pass too (`kernels/fused_residual_norm.py`). On GPUs the
matmul is a library call, and the forward and the backward pass are one kernel each (`kernels/gpu_residual_norm.py`).
"""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import struct
from jaxtyping import Array, Float, UInt32

from bert_jax.model.chip import is_gpu, uses_tpu_norm_kernels
from bert_jax.model.dense import add_bias
from bert_jax.model.dropout import Dropout, drop
from bert_jax.model.kernels import fused_residual_norm
from bert_jax.model.normalization import layer_norm


@struct.dataclass
class Sublayer:
    """The output of a sub-layer before its bias is added: a kernel sums the gradient of the bias itself."""

    product: Float[Array, "B T D"]
    bias: Float[Array, " D"]


def residual_norm(
    sublayer: Sublayer,
    *,
    hidden: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    eps: float,
    dropout: Dropout | None,
    rate: float,
    site: int,
    plain: bool,
) -> Float[Array, "B T D"]:
    """Return LayerNorm(hidden + dropout(sublayer)) in the dtype of the sub-layer; with `plain`, without a kernel."""
    product = sublayer.product
    seeds = None if dropout is None or rate == 0.0 else dropout.row_seeds(site)
    arrays = (hidden, product, sublayer.bias, scale, bias, seeds)

    def reference(
        hidden: Array, product: Array, product_bias: Array, scale: Array, bias: Array, seeds: UInt32[Array, " B"] | None
    ) -> Array:
        added: Array = add_bias(product, product_bias)
        if seeds is not None:
            added = cast(Array, drop(added, seeds, rate))
        return layer_norm(hidden + added, scale, bias, eps, product.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    is_whole = mesh.empty or mesh.size == 1 or bool(mesh.manual_axes)  # XLA cannot partition a kernel
    choices: dict[str, Any] = {}
    if not plain and is_whole and uses_tpu_norm_kernels() and fused_residual_norm.is_supported(product.shape):
        choices["tpu"] = _of_arrays(fused_residual_norm.fused_residual_norm, eps=eps, rate=rate)
    if not plain and is_whole and is_gpu():
        from bert_jax.model.kernels import gpu_residual_norm  # optional: jax calls Pallas for GPUs deprecated

        if gpu_residual_norm.is_supported(product.shape, dtype=product.dtype):
            choices["cuda"] = _of_arrays(gpu_residual_norm.gpu_residual_norm, eps=eps, rate=rate)
    # The platform is chosen at lowering: a TPU program may be compiled on a machine without TPUs, and arrays may be on
    # the CPU of a machine with a GPU.
    out: Array = jax.lax.platform_dependent(*arrays, default=reference, **choices) if choices else reference(*arrays)
    return out


def _of_arrays(kernel: Callable[..., Array], *, eps: float, rate: float) -> Callable[..., Array]:
    def call(*arrays: Any) -> Array:
        *rest, seeds = arrays
        return kernel(tuple(rest), eps=eps, seeds=seeds, rate=rate)

    return call
