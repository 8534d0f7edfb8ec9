"""The norm behind a sub-layer: the kernels equal the plain form, and are lowered for their chips."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import lower_for_gpu
from tiny_model import tiny_model

from bert_jax.model import chip
from bert_jax.model.attention import AttentionMask
from bert_jax.model.bert.encoder import BertLayer
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels import fused_residual_norm as on_tpu
from bert_jax.model.kernels.gpu_residual_norm import gpu_residual_norm, is_supported
from bert_jax.model.residual_norm import Sublayer, residual_norm
from tests.rounding import UNIT_BFLOAT16, assert_trees_rounded_alike, norm_bound

pytestmark = pytest.mark.numerics

EPS = 1e-12


def random_arrays(width: int, *, length: int = 64, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Return input, product, its bias, scale, bias and a cotangent of two rows of tokens."""
    tokens = (2, length, width)
    shapes = [tokens, tokens, (width,), (width,), (width,), tokens]
    keys = jax.random.split(jax.random.key(width), len(shapes))
    dtypes = [dtype, dtype, dtype, jnp.float32, jnp.float32, dtype]
    return tuple(jax.random.normal(*pair).astype(one) for *pair, one in zip(keys, shapes, dtypes, strict=True))


DROPOUT = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(2))


def plain(*arrays: jax.Array, rate: float) -> jax.Array:
    """Return the plain form's norm."""
    hidden, product, product_bias, scale, bias = arrays
    weights = {"hidden": hidden, "scale": scale, "bias": bias}
    rest = {"eps": EPS, "dropout": DROPOUT, "rate": rate, "site": 2, "plain": True}
    return residual_norm(Sublayer(product, product_bias), **weights, **rest)


def assert_equal(kernel: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], *, rate: float) -> None:
    """Check values and all gradients against the plain form's in float32."""
    *inputs, outer = arrays
    expected, pull_expected = jax.vjp(functools.partial(plain, rate=rate), *inputs)
    actual, pull = jax.vjp(kernel, *inputs)
    for one, other in zip((actual, *pull(outer)), (expected, *pull_expected(outer)), strict=True):
        assert one.dtype == other.dtype
        assert_trees_rounded_alike(one, other, bound=norm_bound(inputs[0].shape[-1], tokens=2 * inputs[0].shape[1]))


@pytest.mark.parametrize(("width", "rate"), [pytest.param(128, 0.1, marks=pytest.mark.slow), (96, 0.3), (64, 0.0)])
def test_the_kernel_equals_the_plain_form_in_values_gradients_and_what_it_drops(width: int, rate: float) -> None:
    def kernel(*arrays: jax.Array) -> jax.Array:
        return gpu_residual_norm(arrays, eps=EPS, seeds=DROPOUT.row_seeds(2), rate=rate, interpret=True)

    assert_equal(kernel, random_arrays(width), rate=rate)


@pytest.mark.parametrize("fuse_forward", [False, True])
@pytest.mark.parametrize(
    ("width", "length", "rate", "block_bytes"),
    [
        (128, 64, 0.1, 2**20),  # both rows in one step of the grid
        (128, 128, 0.1, 2**20),  # and two rounds in each
        pytest.param(384, 192, 0.3, 2**17, marks=pytest.mark.slow),  # a sequence in three steps
        (256, 128, 0.0, 2**17),  # a row a step
    ],
)
def test_the_tpus_kernels_equal_the_plain_form(
    width: int, length: int, rate: float, block_bytes: int, fuse_forward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_tpu, "_BLOCK_BYTES", block_bytes)
    seeds = DROPOUT.row_seeds(2) if rate else None

    def kernel(*arrays: jax.Array) -> jax.Array:
        return on_tpu.fused_residual_norm(
            arrays, eps=EPS, seeds=seeds, rate=rate, fuse_forward=fuse_forward, interpret=True
        )

    assert_equal(kernel, random_arrays(width, length=length), rate=rate)


@pytest.mark.parametrize("fuse_forward", [False, True])
def test_the_tpus_kernels_round_bfloat16_no_worse_than_the_plain_form(fuse_forward: bool) -> None:
    *inputs, outer = random_arrays(256, dtype=jnp.bfloat16)
    exact = [array.astype(jnp.float32) for array in (*inputs, outer)]
    expected = jax.vjp(functools.partial(plain, rate=0.1), *exact[:-1])[1](exact[-1])

    def errors(function: Callable[..., jax.Array]) -> list[float]:
        found = jax.vjp(function, *inputs)[1](outer)
        pairs = zip(found, expected, strict=True)
        return [float(np.abs(one.astype(jnp.float32) - other).max() / np.abs(other).max()) for one, other in pairs]

    def kernel(*arrays: jax.Array) -> jax.Array:
        seeds = DROPOUT.row_seeds(2)
        return on_tpu.fused_residual_norm(
            arrays, eps=EPS, seeds=seeds, rate=0.1, fuse_forward=fuse_forward, interpret=True
        )

    for by_kernel, by_plain in zip(errors(kernel), errors(functools.partial(plain, rate=0.1)), strict=True):
        assert by_kernel <= max(1.25 * by_plain, 2 * UNIT_BFLOAT16)  # a rounding of the result is up to a unit of it
        assert by_kernel < 8 * UNIT_BFLOAT16


def test_what_the_tpus_kernels_take() -> None:
    assert on_tpu.is_supported((2, 128, 768))
    assert not on_tpu.is_supported((2, 100, 768))
    assert not on_tpu.is_supported((2, 128, 312))
    assert not on_tpu.is_supported((2, 128, 8192))


def test_the_tpus_kernels_are_for_tpus_that_hash_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, expected in [(None, False), ("TPU v5 lite", True), ("TPU v4", False), ("NVIDIA H100", False)]:
        monkeypatch.setattr(chip, "_device_kind", lambda kind=kind: kind)
        assert chip.uses_tpu_norm_kernels() == expected


@pytest.mark.parametrize(("implementation", "kernels"), [("auto", 2), ("reference", 0)])
def test_an_encoder_layer_has_the_tpus_kernel_behind_both_sublayers(
    implementation: str, kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chip, "_device_kind", lambda: "TPU v5 lite")
    model = tiny_model(
        hidden_size=128, num_attention_heads=1, num_hidden_layers=1, attention_implementation=implementation
    )
    hidden = jnp.ones((2, 64, 128))
    ids = jnp.ones((2, 64), jnp.int32)
    mask = AttentionMask(segment_ids=ids, position_ids=ids, direction=model.attention_direction)
    layer = BertLayer(model)
    params = layer.init(jax.random.key(0), hidden, mask=mask, dropout=None)

    def loss(params: Any) -> jax.Array:
        return cast(jax.Array, layer.apply(params, hidden, mask=mask, dropout=DROPOUT)).sum()

    text = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("residual_norm_backward") == kernels


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
