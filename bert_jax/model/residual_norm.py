"""Add a sub-layer's output to its input and normalise; the only file that chooses a kernel for it.

The plain form is one addition and dropout after the other, which a TPU's compiler fuses with the matmul before them. On
a GPU that matmul is a library call, and forward and backward are one kernel each (`kernels/gpu_residual_norm.py`).
"""

import jax
from jaxtyping import Array, Float

from bert_jax.model.chip import is_gpu
from bert_jax.model.dense import add_bias
from bert_jax.model.dropout import Dropout
from bert_jax.model.normalization import layer_norm


def residual_norm(
    hidden: Float[Array, "B T D"],
    product: Float[Array, "B T D"],
    product_bias: Float[Array, " D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    *,
    eps: float,
    dropout: Dropout | None,
    rate: float,
    site: int,
) -> Float[Array, "B T D"]:
    """Return LayerNorm(hidden + drop(product + product_bias)) in the dtype of `product`."""
    dropping = dropout if rate else None
    mesh = jax.sharding.get_abstract_mesh()
    if is_gpu() and (mesh.empty or mesh.size == 1 or mesh.manual_axes):
        from bert_jax.model.kernels.gpu_residual_norm import gpu_residual_norm, is_supported

        if is_supported(product.shape, dtype=product.dtype):
            seeds = None if dropping is None else dropping.row_seeds(site)
            rate = 0.0 if dropping is None else rate
            return gpu_residual_norm(hidden, product, product_bias, scale, bias, eps=eps, seeds=seeds, rate=rate)
    added = add_bias(product, product_bias)
    if dropping is not None:
        added = dropping.apply(added, rate=rate, site=site)
    return layer_norm(hidden + added, scale, bias, eps, product.dtype)
