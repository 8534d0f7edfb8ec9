"""Attention: every implementation against NumPy in float64 and the reference, and who may look at whom."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import random_rows, to_device

from bert_jax.config import MeshConfig
from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels import fused_attention
from bert_jax.model.rotation import Rotation
from bert_jax.parallel import mesh as meshes
from bert_jax.rows.layout import encoder_inputs
from tests.rounding import (
    FUNCTION,
    UNIT,
    UNIT_BFLOAT16,
    assert_attention_rounded_alike,
    assert_rounded_alike,
    assert_trees_rounded_alike,
    attention_bounds,
    attention_magnitudes,
    rounded,
    sum_bound,
)

pytestmark = pytest.mark.numerics

# Small shapes go to the reference whatever the name, and our kernel has tests of its own below.
IMPLEMENTATIONS = ("auto", "reference")
DIRECTIONS = ("bidirectional", "left_to_right")
# Relative to the largest value, in bfloat16: queries and keys with their biases are rounded to a unit, so that their 64
# products, of size 2 and random sign, move a score by sqrt(2 x 64) x 2 / 8 units, and a probability by as much
# relatively. Values, probabilities, what comes back to them and the result are rounded once each. Both sides.
KERNEL_TOLERANCE_BFLOAT16 = 2 * (math.sqrt(2 * 64) * 2 / 8 + 4) * UNIT_BFLOAT16


def attend_plain(query: jax.Array, *, key: jax.Array, value: jax.Array, mask: AttentionMask, **rest: Any) -> jax.Array:
    """Attend with no biases."""
    q, k, v = (Projected(array, jnp.zeros(array.shape[2:], array.dtype)) for array in (query, key, value))
    return attend(q, key=k, value=v, mask=mask, **rest)


def whole_rows(batch: int, length: int, *, segment: int = 1) -> AttentionMask:
    """Return the mask of rows that are one instance (or, for segment 0, padding)."""
    place = jnp.broadcast_to(jnp.arange(length), (batch, length))
    return AttentionMask(jnp.full((batch, length), segment), place, direction="bidirectional")


def random_qkv(seed: int, *, shape: tuple[int, int, int, int], scale: float = 1.0) -> list[jax.Array]:
    """Return query, key and value."""
    return [scale * jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(seed), 3)]


def slow_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Attend in float64, by the formula."""
    q, k, v = (np.asarray(array, np.float64) for array in (query, key, value))
    scores = np.einsum("btnk,bsnk->bnts", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnk->btnk", weights / weights.sum(-1, keepdims=True), v)


def output_bound(query: jax.Array, *, key: jax.Array, value: jax.Array, mask: AttentionMask, rate: float) -> np.ndarray:
    """Return how far the output of attention without biases may be apart."""
    none = jnp.zeros(query.shape[2:])
    return attention_bounds([query, none, key, none, value, none, value], mask=mask, rate=rate)[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_attention_equals_the_formula(implementation: str, scale: float, direction: str) -> None:
    inputs = encoder_inputs(to_device(random_rows(0, batch=4, length=32, instances=3)))
    mask = AttentionMask(inputs.segment_ids, inputs.position_ids, direction=direction)
    query, key, value = random_qkv(1, shape=(4, 32, 2, 8), scale=scale)
    result = attend_plain(
        query, key=key, value=value, mask=mask, dropout=None, rate=0.1, site=1, implementation=implementation
    )
    expected = slow_attention(*map(np.asarray, (query, key, value, mask.dense())))
    # Scores of large inputs are of order 1000, whose float32 spacing is 6e-5: the bound has their size.
    assert_rounded_alike(result, expected, bound=output_bound(query, key=key, value=value, mask=mask, rate=0.0))


def slow_mask(segment_ids: np.ndarray, position_ids: np.ndarray, *, direction: str) -> np.ndarray:
    """Return who sees whom, by loops over one row."""
    length = len(segment_ids)
    allowed = np.zeros((length, length), bool)
    for q in range(length):
        for k in range(length):
            same = segment_ids[q] == segment_ids[k] or segment_ids[q] == 0
            past = direction == "bidirectional" or position_ids[k] <= position_ids[q]
            allowed[q, k] = segment_ids[k] > 0 and same and past
    return allowed


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tokens_see_their_own_instance_and_padding_sees_every_token(direction: str) -> None:
    inputs = encoder_inputs(to_device(random_rows(2, batch=16, length=24, instances=3, empty_rows=1)))
    mask = np.asarray(AttentionMask(inputs.segment_ids, inputs.position_ids, direction=direction).dense())
    assert mask.shape == (16, 1, 24, 24)
    for row in range(16):
        expected = slow_mask(
            np.asarray(inputs.segment_ids[row]), np.asarray(inputs.position_ids[row]), direction=direction
        )
        np.testing.assert_array_equal(mask[row, 0], expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_with_nothing_to_see_is_finite_and_so_are_its_gradients(implementation: str) -> None:
    query, key, value = random_qkv(3, shape=(2, 8, 2, 4))
    mask = whole_rows(2, 8, segment=0)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_plain(
            q, key=k, value=v, mask=mask, dropout=None, rate=0.0, site=1, implementation=implementation
        ).sum()

    values, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(query, key, value)
    assert np.isfinite(values)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_hidden_has_no_influence_however_large(implementation: str) -> None:
    query, key, value = random_qkv(4, shape=(1, 16, 2, 8))
    place = jnp.arange(16)[None]
    mask = AttentionMask(jnp.where(place < 10, 1, 0), place, direction="bidirectional")
    arguments = {"mask": mask, "dropout": None, "rate": 0.0, "site": 1, "implementation": implementation}
    first = attend_plain(query, key=key, value=value, **arguments)
    huge = jnp.where(place[..., None, None] < 10, 1, 1e6)
    second = attend_plain(query, key=key * huge, value=value * huge, **arguments)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_is_that_of_the_probabilities(implementation: str) -> None:
    query, key, _ = random_qkv(5, shape=(2, 16, 2, 16))
    # With the identity for values, attention returns its probabilities.
    value = jnp.broadcast_to(jnp.eye(16)[None, :, None, :], query.shape)
    dropout = Dropout.create(jax.random.key(6), rows=jnp.arange(2))
    mask = whole_rows(2, 16)
    arguments = {"key": key, "value": value, "mask": mask, "site": 1, "implementation": implementation}
    plain = attend_plain(query, dropout=None, rate=0.25, **arguments).swapaxes(1, 2)
    dropped = attend_plain(query, dropout=dropout, rate=0.25, **arguments).swapaxes(1, 2)
    state = AttentionDropout.create(dropout, rate=0.25, site=1)
    assert state is not None
    keep = state.keep(jnp.arange(2), length=16)
    bound = output_bound(query, key=key, value=value, mask=mask, rate=0.25).swapaxes(1, 2)
    assert_rounded_alike(dropped, jnp.where(keep, plain / 0.75, 0), bound=bound)
    other = dataclasses.replace(dropout, seed=dropout.seed + 1)
    assert not np.array_equal(dropped, attend_plain(query, dropout=other, rate=0.25, **arguments).swapaxes(1, 2))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_close_to_float32(implementation: str) -> None:
    query, key, value = random_qkv(7, shape=(2, 32, 2, 16))
    mask = whole_rows(2, 32)
    arguments = {"mask": mask, "dropout": None, "rate": 0.0, "site": 1, "implementation": implementation}
    wide = attend_plain(query, key=key, value=value, **arguments)
    narrow = attend_plain(
        query.astype(jnp.bfloat16), key=key.astype(jnp.bfloat16), value=value.astype(jnp.bfloat16), **arguments
    )
    assert narrow.dtype == jnp.bfloat16
    # Query and key are rounded, which a score has from each of its terms, then value, probability and result.
    none = jnp.zeros((2, 16))
    sizes, score = attention_magnitudes([query, none, key, none, value, none, value], mask=mask, rate=0.0)
    bound = (2 * score + 3) * UNIT_BFLOAT16 * sizes[0]
    assert (np.abs(narrow.astype(jnp.float32) - wide) <= bound).all()
    assert not (np.abs(1.1 * narrow.astype(jnp.float32) - wide) <= bound).all()


def results(implementation: str, arrays: list[jax.Array], *, mask: AttentionMask, rate: float) -> list[jax.Array]:
    """Return the output and the gradients of q, k, v and their biases; dropout as of global rows 3, 4, ..."""
    *biased, weights = arrays

    def run(*values: jax.Array) -> jax.Array:
        q, k, v = (Projected(values[number], values[number + 1]) for number in (0, 2, 4))
        dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(len(weights)))
        rest = {"dropout": dropout, "rate": rate, "site": 1, "implementation": implementation}
        return attend(q, key=k, value=v, mask=mask, **rest)

    def with_gradients(values: list[jax.Array], out: jax.Array) -> list[jax.Array]:
        result, pull = jax.vjp(run, *values)
        return [result, *pull(out)]

    return jax.jit(with_gradients)(biased, weights)


def random_arrays(*, batch: int, length: int, heads: int, dtype: Any = jnp.float32) -> list[jax.Array]:
    """Return query, its bias, key, its bias, value, its bias, and a cotangent."""
    shapes = [(batch, length, heads, 64), (heads, 64)] * 3 + [(batch, length, heads, 64)]
    keys = jax.random.split(jax.random.key(8), len(shapes))
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def packed_mask(length: int, *, direction: str = "bidirectional", batch: int = 1) -> AttentionMask:
    """Return the mask of rows of three instances and padding."""
    inputs = encoder_inputs(to_device(random_rows(3, batch=batch, length=length, instances=3)))
    return AttentionMask(inputs.segment_ids, inputs.position_ids, direction=direction)


def assert_equal(actual: list[jax.Array], expected: list[jax.Array], *, tolerance: float) -> None:
    """Compare what two calls of `results` gave, each array relative to its largest value.

    The gradient of the keys' bias is 0 but for rounding, so the queries' gives its scale.
    """
    scales = [np.abs(np.asarray(array, np.float64)).max() for array in expected]
    scales[4] = scales[2]
    for number, (first, second) in enumerate(zip(actual, expected, strict=True)):
        difference = np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).max()
        assert difference <= tolerance * scales[number], number


@pytest.mark.parametrize(
    ("length", "heads", "rate", "direction"),
    [
        (128, 8, 0.1, "bidirectional"),
        pytest.param(128, 6, 0.1, "bidirectional", marks=pytest.mark.slow),
        (128, 2, 0.0, "bidirectional"),
        (256, 2, 0.1, "left_to_right"),
        pytest.param(384, 2, 0.1, "bidirectional", marks=pytest.mark.slow),
        pytest.param(512, 4, 0.1, "bidirectional", marks=pytest.mark.slow),
        # Above 512, a step loops over blocks of queries: five of 128, and three of 256 in two steps.
        (640, 2, 0.1, "bidirectional"),
        pytest.param(768, 4, 0.1, "left_to_right", marks=pytest.mark.slow),
    ],
)
def test_the_kernel_equals_the_reference_in_values_gradients_and_what_it_drops(
    length: int, heads: int, rate: float, direction: str
) -> None:
    arrays, mask = random_arrays(batch=1, length=length, heads=heads), packed_mask(length, direction=direction)
    expected = results("reference", arrays, mask=mask, rate=rate)
    # A single probability dropped by one and not by the other would differ by a thousand times the tolerance.
    actual = results("pallas", arrays, mask=mask, rate=rate)
    assert_attention_rounded_alike(actual, expected, arrays=arrays, mask=mask, rate=rate)


@pytest.mark.parametrize(
    ("length", "heads", "most", "per_step"),
    [
        (128, 12, 1 << 17, (4, 4)),  # three steps of the grid a row
        pytest.param(128, 6, 1 << 17, (2, 2), marks=pytest.mark.slow),
        # Two groups of heads in a step, each with three blocks of queries.
        pytest.param(384, 8, 1 << 20, (8, 8), marks=pytest.mark.slow),
    ],
)
def test_the_kernel_equals_the_reference_however_a_rows_heads_are_shared_out(
    length: int, heads: int, most: int, per_step: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_attention, "_FORWARD_BYTES", most)
    monkeypatch.setattr(fused_attention, "_BACKWARD_BYTES", most)
    sizes = {"length": length, "heads": heads, "item_bytes": 4}
    rounds = [fused_attention.loop_rounds(name, **sizes) for name in ("forward", "backward")]
    assert rounds == [[heads // count, 1] for count in per_step]
    arrays, mask = random_arrays(batch=2, length=length, heads=heads), packed_mask(length, batch=2)
    expected = results("reference", arrays, mask=mask, rate=0.1)
    actual = results("pallas", arrays, mask=mask, rate=0.1)
    assert_attention_rounded_alike(actual, expected, arrays=arrays, mask=mask, rate=0.1)


def test_long_sequences_in_float32_need_more_vmem_than_a_v4_has() -> None:
    supported = functools.partial(fused_attention.is_supported, heads=12, head_size=64)
    assert supported(length=1024, item_bytes=4)
    assert supported(length=1024, item_bytes=2, little_vmem=True)
    assert supported(length=512, item_bytes=4, little_vmem=True)
    assert not supported(length=640, item_bytes=4, little_vmem=True)


def test_one_probability_dropped_by_one_side_alone_is_noticed() -> None:
    arrays, mask = random_arrays(batch=1, length=128, heads=2), packed_mask(128)
    expected = results("reference", arrays, mask=mask, rate=0.1)
    _, score = attention_magnitudes(arrays, mask=mask, rate=0.1)
    assert 2 * UNIT * (score + 5 * 7) < 1e-3 / 128  # a probability is about a 128th of the sum of all
    other = [expected[0].at[0, 5].multiply(1 + 1 / 128), *expected[1:]]
    with pytest.raises(AssertionError):
        assert_attention_rounded_alike(other, expected, arrays=arrays, mask=mask, rate=0.1)


def test_the_kernel_is_close_to_the_reference_in_bfloat16() -> None:
    arrays, mask = random_arrays(batch=1, length=128, heads=2, dtype=jnp.bfloat16), packed_mask(128)
    actual, expected = (results(name, arrays, mask=mask, rate=0.1) for name in ("pallas", "reference"))
    assert all(array.dtype == jnp.bfloat16 for array in actual)
    assert_equal(actual, expected, tolerance=KERNEL_TOLERANCE_BFLOAT16)
    with pytest.raises(AssertionError):
        assert_equal([1.05 * actual[0], *actual[1:]], expected, tolerance=KERNEL_TOLERANCE_BFLOAT16)


def test_the_kernel_takes_large_scores_and_rows_with_nothing_to_see() -> None:
    arrays = [30 * array for array in random_arrays(batch=1, length=128, heads=2)]
    expected = results("reference", arrays, mask=whole_rows(1, 128), rate=0.0)
    actual = results("pallas", arrays, mask=whole_rows(1, 128), rate=0.0)
    assert_attention_rounded_alike(actual, expected, arrays=arrays, mask=whole_rows(1, 128), rate=0.0)
    nothing = results("pallas", arrays, mask=whole_rows(1, 128, segment=0), rate=0.1)
    assert all(np.isfinite(array).all() for array in nothing)


@pytest.mark.parametrize("tensor", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_kernel_drops_the_same_on_every_mesh(tensor: int) -> None:
    arrays, mask = random_arrays(batch=4, length=128, heads=4), packed_mask(128, batch=4)
    expected = results("pallas", arrays, mask=mask, rate=0.1)
    with meshes.use_mesh(meshes.make_mesh(MeshConfig(4 // tensor, 1, tensor), devices=jax.devices()[:4])):
        sharded = jax.jit(lambda *values: results("pallas", list(values), mask=mask, rate=0.1))(*arrays)
    assert_attention_rounded_alike(sharded, expected, arrays=arrays, mask=mask, rate=0.1)


def turned(values: jax.Array, position_ids: jax.Array) -> jax.Array:
    """Return the two halves of each head as complex numbers, turned by position x 10000^(-2i / K)."""
    half = values.shape[-1] // 2
    frequencies = jnp.asarray(10_000.0 ** (-np.arange(half) / half), jnp.float32)
    angles = position_ids[:, :, None, None] * frequencies[None, None, None]
    pairs = (values[..., :half] + 1j * values[..., half:]) * jnp.exp(1j * angles)
    return jnp.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.parametrize("implementation", ["reference", "pallas"])
def test_a_rotation_comes_after_the_bias_and_before_attention(implementation: str) -> None:
    *biased, weights = random_arrays(batch=1, length=128, heads=2)
    mask = packed_mask(128)
    rest = {"mask": mask, "dropout": None, "rate": 0.0, "site": 1}
    rotation = Rotation.create(mask.position_ids, head_size=64, base=10_000.0)

    def rotated(*arrays: jax.Array) -> jax.Array:
        q, k, v = (Projected(arrays[number], arrays[number + 1]) for number in (0, 2, 4))
        q, k = (dataclasses.replace(projected, rotation=rotation) for projected in (q, k))
        return attend(q, key=k, value=v, implementation=implementation, **rest)

    def by_hand(*arrays: jax.Array) -> jax.Array:
        q, k, v = (arrays[number] + arrays[number + 1][None, None] for number in (0, 2, 4))
        q, k = turned(q, mask.position_ids), turned(k, mask.position_ids)
        return attend_plain(q, key=k, value=v, implementation="reference", **rest)

    def with_gradients(function: Any) -> list[jax.Array]:
        result, pull = jax.vjp(jax.jit(function), *biased)
        return [result, *pull(weights)]

    # The angles are the same numbers; what is rotated has the roundings of a sine, two products and a sum, for queries
    # and for keys. Three sums of up to 128 terms follow (scores, weights, values), the way back has twice as many of
    # all, and a bias one over tokens.
    bound = rounded(3 * 2 * (FUNCTION + 3)) + (3 * 3 + 1) * sum_bound(128)
    assert_trees_rounded_alike(with_gradients(rotated), with_gradients(by_hand), bound=bound)


@pytest.mark.parametrize("tensor", [0, 1, 2])
def test_projections_without_biases_attend_as_with_biases_of_zero(tensor: int) -> None:
    query, _, key, _, value, _, weights = random_arrays(batch=4, length=128, heads=4)
    mask, zeros = packed_mask(128, batch=4), jnp.zeros((4, 64))

    def run(*values: jax.Array) -> Any:
        def attended(*values: jax.Array) -> jax.Array:
            q, k, v = map(Projected, values)
            rest = {"dropout": None, "rate": 0.0, "site": 1, "implementation": "pallas"}
            return attend(q, key=k, value=v, mask=mask, **rest)

        result, pull = jax.vjp(attended, *values)
        return [result, *pull(weights)]

    arrays = [query, zeros, key, zeros, value, zeros, weights]
    expected = results("pallas", arrays, mask=mask, rate=0.0)
    if tensor:
        with meshes.use_mesh(meshes.make_mesh(MeshConfig(4 // tensor, 1, tensor), devices=jax.devices()[:4])):
            found = jax.jit(run)(query, key, value)
    else:
        found = jax.jit(run)(query, key, value)
    with_biases = [found[0], found[1], expected[2], found[2], expected[4], found[3], expected[6]]
    assert_attention_rounded_alike(with_biases, expected, arrays=arrays, mask=mask, rate=0.0)
