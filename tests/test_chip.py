"""What is written differently for chips whose vector units are the bottleneck, and that it computes the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import chip, dense
from bert_jax.model.chip import is_vector_bound, write_once
from bert_jax.model.dense import add_bias

# The gradient of a bias is a sum over all tokens, in another order.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def vector_bound_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chip, dense):
        monkeypatch.setattr(module, "is_vector_bound", lambda: True)


def test_without_a_mesh_no_chip_is_vector_bound() -> None:
    assert not is_vector_bound()  # with one: tests/test_plan.py, which has TPU meshes


def bias_gradient(values: jax.Array, bias: jax.Array) -> Any:
    return jax.grad(lambda pair: jnp.sin(add_bias(*pair)).sum())((values, bias))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_biass_gradient_is_the_sum(dtype: Any, request: pytest.FixtureRequest) -> None:
    values, bias = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(3, 50, 24), (24,)]))
    values, bias = values.astype(dtype), bias.astype(dtype)
    plain = bias_gradient(values, bias)
    request.getfixturevalue("vector_bound_chip")
    assert "dot_general" in str(jax.make_jaxpr(bias_gradient)(values, bias))
    by_matmul = bias_gradient(values, bias)
    exact = np.cos(np.asarray(values + bias, np.float64)).sum((0, 1))
    # bfloat16: each of 150 addends and the sum are rounded to eight bits.
    tolerance: dict[str, Any] = TOLERANCE if dtype == jnp.float32 else {"atol": 0.2, "rtol": 2**-7}
    for found in (plain, by_matmul):
        assert found[1].dtype == dtype
        np.testing.assert_allclose(np.asarray(found[1], np.float64), exact, **tolerance)
    np.testing.assert_array_equal(plain[0], by_matmul[0])


@pytest.mark.usefixtures("vector_bound_chip")
def test_values_are_written_once() -> None:
    text = str(jax.make_jaxpr(lambda x: write_once(x * 2, x * 3))(jnp.ones(4)))
    assert "optimization_barrier" in text
