"""Add a sub-layer's output to its input and normalize; the only file that chooses a kernel for it.

The plain form is one addition and dropout after the other, which a TPU's compiler fuses with the matmul before them.
The way back is a kernel there, on some TPUs the way there too (`kernels/fused_residual_norm.py`). On a GPU that matmul
is a library call, and forward and backward are one kernel each (`kernels/gpu_residual_norm.py`).
"""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import struct
from jaxtyping import Array, Float, UInt32

from bert_jax.model.chip import is_gpu, takes_tpu_norm
from bert_jax.model.dense import add_bias
from bert_jax.model.dropout import Dropout, drop
from bert_jax.model.kernels import fused_residual_norm
from bert_jax.model.normalization import layer_norm


@struct.dataclass
class Sublayer:
    """Hold what a sub-layer gave, before its bias is added: a kernel sums the bias's gradient itself."""

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
    """Return LayerNorm(hidden + drop(sublayer)) in the dtype of the sub-layer; `plain` asks for no kernel."""
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
    if not plain and is_whole and takes_tpu_norm() and fused_residual_norm.is_supported(product.shape):
        choices["tpu"] = _of_arrays(fused_residual_norm.fused_residual_norm, eps=eps, rate=rate)
    if not plain and is_whole and is_gpu():
        from bert_jax.model.kernels import gpu_residual_norm  # optional: Pallas for GPUs, which jax calls deprecated

        if gpu_residual_norm.is_supported(product.shape, dtype=product.dtype):
            choices["cuda"] = _of_arrays(gpu_residual_norm.gpu_residual_norm, eps=eps, rate=rate)
    # The choice falls when the program is lowered: a TPU's may be compiled on a machine that has none, and arrays may
    # lie on the CPU of a machine that has a GPU.
    out: Array = jax.lax.platform_dependent(*arrays, default=reference, **choices) if choices else reference(*arrays)
    return out


def _of_arrays(kernel: Callable[..., Array], *, eps: float, rate: float) -> Callable[..., Array]:
    def call(*arrays: Any) -> Array:
        *rest, seeds = arrays
        return kernel(tuple(rest), eps=eps, seeds=seeds, rate=rate)

    return call
