"""Dense layers: Flax's parameters and initialization, and a bias whose gradient suits the chip."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from bert_jax.config import ModelConfig
from bert_jax.model.chip import is_vector_bound

_ROWS = 8  # of a TPU register


def kernel_init(
    config: ModelConfig, names: tuple[str | None, ...], *, stddev: float | None = None
) -> Callable[..., Any]:
    """Return the truncated normal (at two standard deviations) of the original, with logical axis names.

    The default of `stddev` is `config.initializer_range`.
    """
    stddev = config.initializer_range if stddev is None else stddev
    return nn.with_logical_partitioning(nn.initializers.truncated_normal(stddev), names)


class Dense(nn.Module):
    """A dense layer, with a bias unless `use_bias` is False; `names` are the logical axes of the kernel.

    `stddev` is that of the initial kernel (see `kernel_init`).
    """

    config: ModelConfig
    features: int
    names: tuple[str | None, str | None]
    use_bias: bool = True
    stddev: float | None = None

    def __call__(self, values: Float[Array, "*n D"]) -> Float[Array, "*n F"]:
        """Return the result in `config.dtype`."""
        product, bias = self.parts(values)
        return product if bias is None else add_bias(product, bias)

    @nn.compact
    def parts(self, values: Float[Array, "*n D"]) -> tuple[Float[Array, "*n F"], Float[Array, " F"] | None]:
        """Return the product and the bias, for callers that add the bias themselves."""
        return product_and_bias(
            self,
            values,
            config=self.config,
            features=self.features,
            names=self.names,
            use_bias=self.use_bias,
            stddev=self.stddev,
        )


def product_and_bias(
    module: nn.Module,
    values: Float[Array, "*n D"],
    *,
    config: ModelConfig,
    features: int,
    names: tuple[str | None, str | None],
    use_bias: bool,
    stddev: float | None = None,
) -> tuple[Float[Array, "*n F"], Float[Array, " F"] | None]:
    """Return the product with `module`'s kernel, and the bias to add or None, both in `config.dtype`."""
    dtype = config.dtype
    kernel = module.param("kernel", kernel_init(config, names, stddev=stddev), (values.shape[-1], features))
    product = jnp.dot(values.astype(dtype), cast(Array, kernel).astype(dtype))
    if not use_bias:
        return product, None
    bias_init = nn.with_logical_partitioning(nn.initializers.zeros, names[1:])
    return product, cast(Array, module.param("bias", bias_init, (features,))).astype(dtype)


@jax.custom_vjp
def add_bias(values: Float[Array, "*n F"], bias: Float[Array, " F"]) -> Float[Array, "*n F"]:
    """Return the sum. On a vector-bound chip the bias gradient is a matmul with ones, not a separate reduction."""
    return _sum(values, bias)


def _sum(values: Float[Array, "*n F"], bias: Float[Array, " F"]) -> Float[Array, "*n F"]:
    return values + jax.lax.broadcast_to_rank(bias, values.ndim)


def _backward(_: None, d_out: Float[Array, "*n F"]) -> tuple[Array, Array]:
    flat = d_out.reshape(-1, d_out.shape[-1])
    if not is_vector_bound():
        return d_out, flat.sum(0)
    precision = jax.lax.Precision.HIGHEST if flat.dtype == jnp.float32 else None
    ones = jnp.ones((_ROWS, len(flat)), flat.dtype)
    total = jnp.dot(ones, flat, preferred_element_type=jnp.float32, precision=precision)
    return d_out, total[0].astype(d_out.dtype)


add_bias.defvjp(lambda values, bias: (_sum(values, bias), None), _backward)
