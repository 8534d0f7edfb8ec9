"""Looking up and the tied decoder: equal to the plain forms, forward and backward; bfloat16 sums lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import embedding
from bert_jax.model.embedding import lookup, sum_equal_rows, tied_logits, tied_lookup

pytestmark = pytest.mark.numerics

# float32 sums in another order.
TOLERANCE = 1e-5
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(50, 16)), jnp.float32)
IDS = jnp.asarray(RNG.integers(0, 50, (4, 24)) ** 2 // 50)  # low ids are frequent
CT = jnp.asarray(RNG.normal(size=(4, 24, 16)), jnp.float32)


def test_a_lookup_is_take_forward_and_backward() -> None:
    rows, back = jax.vjp(lambda table: lookup(table, IDS), TABLE)
    expected, expected_back = jax.vjp(lambda table: jnp.take(table, IDS, axis=0), TABLE)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(back(CT)[0], expected_back(CT)[0], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_tied_table_gets_the_gradients_of_both_uses() -> None:
    weights = jnp.asarray(RNG.normal(size=TABLE.shape), jnp.float32)

    def tied(table: jax.Array) -> jax.Array:
        rows, passed = tied_lookup(table, IDS)
        return (rows * CT).sum() + (passed * weights).sum()

    def plain(table: jax.Array) -> jax.Array:
        return (jnp.take(table, IDS, axis=0) * CT).sum() + (table * weights).sum()

    np.testing.assert_allclose(tied(TABLE), plain(TABLE), rtol=TOLERANCE)
    np.testing.assert_allclose(jax.grad(tied)(TABLE), jax.grad(plain)(TABLE), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_first_of_equal_ids_carries_their_sum() -> None:
    ids = jnp.asarray([3, 1, 3, 2, 1, 3])
    rows = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    summed = sum_equal_rows(ids, rows)
    expected = [rows[0] + rows[2] + rows[5], rows[1] + rows[4], 0 * rows[0], rows[3], 0 * rows[0], 0 * rows[0]]
    np.testing.assert_allclose(summed, jnp.stack(expected), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_bfloat16_table_loses_no_frequent_word() -> None:
    # 4,096 times the same small gradient: added one by one in bfloat16 the sum stops growing at 256 of them.
    ids = jnp.full((4, 1024), 7)
    table = jnp.zeros((50, 8), jnp.bfloat16)
    gradient = jax.vjp(lambda t: tied_lookup(t, ids)[0], table)[1](jnp.full((4, 1024, 8), 0.01))[0]
    np.testing.assert_allclose(np.float32(gradient[7]), 40.96, rtol=2**-8)
    assert not gradient[:7].any()


def test_more_tokens_than_are_summed_at_once_lose_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_EQUAL_ROWS", 40)  # 96 tokens: two whole parts and a rest
    monkeypatch.setattr(embedding, "is_gpu", lambda: True)
    for dtype, tolerance in ((jnp.bfloat16, 2**-8), (jnp.float32, TOLERANCE)):
        gradient = jax.vjp(lambda t: tied_lookup(t, IDS)[0], TABLE.astype(dtype))[1](CT)[0]
        assert gradient.dtype == dtype
        expected = jnp.zeros(TABLE.shape).at[IDS].add(CT.astype(dtype).astype(jnp.float32))
        np.testing.assert_allclose(np.float32(gradient), expected, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tied_logits_are_a_matmul_and_a_bias_forward_and_backward(dtype: jnp.dtype) -> None:
    hidden = jnp.asarray(RNG.normal(size=(2, 5, 16)), dtype)
    bias = jnp.asarray(RNG.normal(size=50), jnp.float32)
    gradient = jnp.asarray(RNG.normal(size=(2, 5, 50)), jnp.float32)

    def plain(hidden: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.einsum("bpd,vd->bpv", hidden.astype(jnp.float32), table.astype(jnp.float32)) + bias[None, None]

    arguments = (hidden, TABLE.astype(dtype), bias)
    logits, back = jax.vjp(tied_logits, *arguments)
    expected, expected_back = jax.vjp(plain, *arguments)
    assert logits.dtype == jnp.float32
    # The gradient of the logits is rounded to the dtype of the hidden states: 2^-9 of each.
    tolerance = TOLERANCE if dtype == jnp.float32 else 2**-6
    np.testing.assert_allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for mine, theirs in zip(back(gradient), expected_back(gradient), strict=True):
        assert mine.dtype == theirs.dtype
        scale = float(jnp.abs(theirs.astype(jnp.float32)).max())
        np.testing.assert_allclose(np.float32(mine), np.float32(theirs), rtol=0, atol=tolerance * scale)
