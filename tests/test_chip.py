"""What is written differently for some chips, and that it computes the same."""

import types
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from gpu_lowering import lower_for_gpu
from tiny_model import tiny_model

from bert_jax.model import activations, attention, chip, dense, embedding, residual_norm
from bert_jax.model.bert.encoder import BertEncoder
from bert_jax.model.chip import is_vector_bound, materialize
from bert_jax.model.dense import add_bias
from bert_jax.model.dropout import Dropout
from bert_jax.types import EncoderInputs, EncoderOutput
from tests.rounding import UNIT_BFLOAT16, assert_trees_rounded_alike, sum_bound


@pytest.fixture
def vector_bound_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chip, dense):
        monkeypatch.setattr(module, "is_vector_bound", lambda: True)


def test_without_a_mesh_no_chip_is_vector_bound() -> None:
    assert not is_vector_bound()  # with one: tests/test_plan.py, which has TPU meshes


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what follows be traced for a GPU."""
    for module in (attention, residual_norm, activations, embedding):
        monkeypatch.setattr(module, "is_gpu", lambda: True)


@pytest.mark.parametrize(("capability", "expected"), [("9.0", True), ("8.0", True), ("7.5", False), ("gfx942", False)])
def test_a_gpu_that_has_no_tensor_cores_for_bfloat16_gets_no_kernel(
    capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = types.SimpleNamespace(device_kind="NVIDIA", compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(chip, "_has_kernels", chip._has_kernels.__wrapped__)
    assert chip.is_gpu() == expected
    monkeypatch.setattr(chip, "_device_kind", lambda: "TPU v5 lite")  # a plan for a TPU
    assert not chip.is_gpu()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("implementation", "kernels"), [("auto", 7), ("reference", 0)])
def test_an_encoder_is_lowered_for_a_gpu_with_its_kernels_or_without_any(implementation: str, kernels: int) -> None:
    # Attention: bits, forward, backward. The two norms: one kernel each way.
    model = tiny_model(
        hidden_size=128,
        num_attention_heads=2,
        dtype="bfloat16",
        scan_layers=True,
        attention_probs_dropout_prob=0.1,
        hidden_dropout_prob=0.1,
        attention_implementation=implementation,
    )
    ids = jnp.ones((2, 64), jnp.int32)
    inputs = EncoderInputs(ids, jnp.zeros_like(ids), jnp.broadcast_to(jnp.arange(64), ids.shape), ids)
    params = BertEncoder(model).init(jax.random.key(0), inputs)["params"]
    dropout = Dropout.create(jax.random.key(1), rows=jnp.arange(2))

    def loss(params: Any) -> jax.Array:
        encoded = cast(EncoderOutput, BertEncoder(model).apply({"params": params}, inputs, dropout=dropout))
        return encoded.hidden.astype(jnp.float32).sum()

    found = lower_for_gpu(jax.grad(loss), nn.meta.unbox(params)).count("__gpu$xla.gpu.triton")
    assert found == kernels


@pytest.mark.numerics
@pytest.mark.usefixtures("gpu")
def test_a_padded_vocabulary_changes_no_logit_and_no_gradient() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, [(2, 5, 16), (50, 16), (50,)], strict=False)]
    outer = jax.random.normal(keys[3], (2, 5, 50))
    logits, pull = jax.vjp(embedding.tied_logits, *arrays)
    plain, pull_plain = jax.vjp(lambda hidden, table, bias: hidden @ table.T + bias[None, None], *arrays)
    for one, other in zip((logits, *pull(outer)), (plain, *pull_plain(outer)), strict=True):
        assert_trees_rounded_alike(one, other, bound=sum_bound(50))  # of 16 numbers, 50 words or 10 tokens


def bias_gradient(values: jax.Array, bias: jax.Array) -> Any:
    return jax.grad(lambda pair: jnp.sin(add_bias(*pair)).sum())((values, bias))


@pytest.mark.numerics
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_biass_gradient_is_the_sum(dtype: Any, request: pytest.FixtureRequest) -> None:
    values, bias = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(3, 50, 24), (24,)]))
    values, bias = values.astype(dtype), bias.astype(dtype)
    plain = bias_gradient(values, bias)
    request.getfixturevalue("vector_bound_chip")
    assert "dot_general" in str(jax.make_jaxpr(bias_gradient)(values, bias))
    by_matmul = bias_gradient(values, bias)
    exact = np.cos(np.asarray(values + bias[None, None], np.float64)).sum((0, 1))
    # Each of 150 addends and the sum are rounded; in bfloat16 the addends' errors have random sign.
    size = float(np.abs(exact).max())
    bound = sum_bound(150, size=size) if dtype == jnp.float32 else 2 * (np.sqrt(150) + size) * UNIT_BFLOAT16
    for found in (plain, by_matmul):
        assert found[1].dtype == dtype
        np.testing.assert_allclose(np.asarray(found[1], np.float64), exact, rtol=0, atol=bound)
    np.testing.assert_array_equal(plain[0], by_matmul[0])


@pytest.mark.usefixtures("vector_bound_chip")
def test_values_are_written_once() -> None:
    text = str(jax.make_jaxpr(lambda x: materialize(x * 2, x * 3))(jnp.ones(4)))
    assert "optimization_barrier" in text
