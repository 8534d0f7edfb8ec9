"""The norm behind a sub-layer: the GPU's kernel equals the plain form, and is lowered for a GPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import lower_for_gpu

from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels.gpu_residual_norm import gpu_residual_norm, is_supported
from bert_jax.model.residual_norm import Sublayer, residual_norm

# float32 sums of up to 128 terms in another order, relative to the largest value.
TOLERANCE = 2e-6
EPS = 1e-12


def random_arrays(width: int, *, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Return input, product, its bias, scale, bias and a cotangent of two rows of 64 tokens."""
    shapes = [(2, 64, width), (2, 64, width), (width,), (width,), (width,), (2, 64, width)]
    keys = jax.random.split(jax.random.key(width), len(shapes))
    dtypes = [dtype, dtype, dtype, jnp.float32, jnp.float32, dtype]
    return tuple(jax.random.normal(*pair).astype(one) for *pair, one in zip(keys, shapes, dtypes, strict=True))


@pytest.mark.parametrize(("width", "rate"), [(128, 0.1), (96, 0.3), (64, 0.0)])
def test_the_kernel_equals_the_plain_form_in_values_gradients_and_what_it_drops(width: int, rate: float) -> None:
    *arrays, outer = random_arrays(width)
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(2))

    def plain(*arrays: jax.Array) -> jax.Array:
        hidden, product, product_bias, scale, bias = arrays
        weights = {"hidden": hidden, "scale": scale, "bias": bias}
        rest = {"eps": EPS, "dropout": dropout, "rate": rate, "site": 2, "plain": True}
        return residual_norm(Sublayer(product, product_bias), **weights, **rest)

    def kernel(*arrays: jax.Array) -> jax.Array:
        return gpu_residual_norm(arrays, eps=EPS, seeds=dropout.row_seeds(2), rate=rate, interpret=True)

    expected, pull_expected = jax.vjp(plain, *arrays)
    actual, pull = jax.vjp(kernel, *arrays)
    for one, other in zip((actual, *pull(outer)), (expected, *pull_expected(outer)), strict=True):
        assert one.dtype == other.dtype
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(other).max()


def test_what_the_kernel_takes() -> None:
    assert is_supported((2, 128, 1024), dtype=jnp.bfloat16)
    assert not is_supported((2, 128, 1024), dtype=jnp.float32)
    assert not is_supported((2, 100, 1024), dtype=jnp.bfloat16)
    assert not is_supported((2, 128, 4096), dtype=jnp.bfloat16)


@pytest.mark.parametrize("width", [1024, 384])
def test_the_kernel_is_lowered_for_a_gpu(width: int) -> None:
    *arrays, outer = random_arrays(width, dtype=jnp.bfloat16)

    def both(arrays: Any, outer: jax.Array) -> Any:
        seeds = jnp.zeros(2, jnp.uint32)
        out, pull = jax.vjp(lambda *arrays: gpu_residual_norm(arrays, eps=EPS, seeds=seeds, rate=0.1), *arrays)
        return out, pull(outer)

    assert lower_for_gpu(both, tuple(arrays), outer).count("__gpu$xla.gpu.triton") == 2
