"""The GPU's attention kernels: equal to the reference where their source is interpreted, and lowered for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import lower_for_gpu
from tiny_model import random_rows, to_device

from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels import gpu_attention
from bert_jax.rows.layout import encoder_inputs
from tests.rounding import assert_attention_rounded_alike, assert_rounded_alike, attention_bounds, sum_bound

pytestmark = pytest.mark.numerics


def make_mask(length: int, *, direction: str) -> AttentionMask:
    """Return the mask of two rows of three instances and padding."""
    inputs = encoder_inputs(to_device(random_rows(3, batch=2, length=length, instances=3)))
    return AttentionMask(inputs.segment_ids, inputs.position_ids, direction=direction)


def kernels(
    arrays: tuple[jax.Array, ...],
    mask: AttentionMask,
    *,
    dropping: AttentionDropout | None,
    interpret: bool,
    first_head: int = 0,
) -> jax.Array:
    """Attend by the kernels; `arrays` are query, its bias, key, its bias, value, its bias."""
    query, q_bias, key, k_bias, value, v_bias = arrays
    plan = gpu_attention.make_plan(
        length=query.shape[1],
        head_size=query.shape[3],
        rate=0.0 if dropping is None else dropping.rate,
        left_to_right=mask.direction == "left_to_right",
    )
    return gpu_attention.gpu_attention(
        (query, key, value),
        biases=(q_bias, k_bias, v_bias),
        segment_ids=mask.segment_ids,
        position_ids=mask.position_ids,
        seeds=jnp.zeros(len(query), jnp.uint32) if dropping is None else dropping.seeds,
        first_head=jnp.int32(first_head),
        plan=plan,
        interpret=interpret,
    )


def random_arrays(shape: tuple[int, int, int, int]) -> tuple[jax.Array, ...]:
    """Return query, its bias, key, its bias, value, its bias, and a cotangent."""
    shapes = [shape, shape[2:]] * 3 + [shape]
    keys = jax.random.split(jax.random.key(shape[1]), len(shapes))
    return tuple(jax.random.normal(key, one) for key, one in zip(keys, shapes, strict=True))


@pytest.mark.parametrize(
    ("length", "heads", "head_size", "rate", "direction"),
    [
        (128, 5, 64, 0.1, "bidirectional"),
        pytest.param(256, 4, 32, 0.1, "left_to_right", marks=pytest.mark.slow),
        (64, 2, 128, 0.0, "bidirectional"),
        pytest.param(192, 4, 16, 0.3, "bidirectional", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_equal_the_reference_in_values_gradients_and_what_they_drop(
    length: int, heads: int, head_size: int, rate: float, direction: str
) -> None:
    mask = make_mask(length, direction=direction)
    *arrays, outer = random_arrays((2, length, heads, head_size))
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(2))
    dropping = AttentionDropout.create(dropout, rate=rate, site=1)

    def reference(*arrays: jax.Array) -> jax.Array:
        query, key, value = (Projected(arrays[number], arrays[number + 1]) for number in (0, 2, 4))
        rest = {"dropout": dropout, "rate": rate, "site": 1, "implementation": "reference"}
        return attend(query, key=key, value=value, mask=mask, **rest)

    expected, pull_expected = jax.vjp(reference, *arrays)
    actual, pull = jax.vjp(lambda *arrays: kernels(arrays, mask, dropping=dropping, interpret=True), *arrays)
    # A single probability dropped by one and not by the other would differ by a thousand times the bound.
    both = {"arrays": [*arrays, outer], "mask": mask, "rate": rate}
    assert_attention_rounded_alike([actual, *pull(outer)], [expected, *pull_expected(outer)], **both)


@pytest.mark.parametrize(("heads", "of_all"), [(6, 12), (4, 8), (3, 9)])
def test_a_device_drops_what_belongs_to_its_heads(heads: int, of_all: int) -> None:
    mask = make_mask(64, direction="bidirectional")
    *arrays, outer = random_arrays((2, 64, of_all, 16))
    bound = attention_bounds([*arrays, outer], mask=mask, rate=0.2)[0]
    dropping = AttentionDropout(seeds=jnp.asarray([5, 77], jnp.uint32), rate=0.2)
    whole = kernels(tuple(arrays), mask, dropping=dropping, interpret=True)
    for first in range(0, of_all, heads):
        own = tuple(array[..., first : first + heads, :] for array in arrays)
        part = kernels(own, mask, dropping=dropping, interpret=True, first_head=first)
        assert_rounded_alike(part, whole[:, :, first : first + heads], bound=bound[:, :, first : first + heads])


def test_rows_with_nothing_to_see_average_all_values_and_so_do_their_gradients() -> None:
    place = jnp.broadcast_to(jnp.arange(64), (1, 64))
    mask = AttentionMask(jnp.zeros((1, 64), jnp.int32), place, direction="bidirectional")
    *arrays, outer = random_arrays((1, 64, 2, 16))
    out, pull = jax.vjp(lambda *arrays: kernels(arrays, mask, dropping=None, interpret=True), *arrays)
    mean = (arrays[4] + arrays[5][None, None]).mean(1, keepdims=True)
    back = outer.mean(1, keepdims=True)
    for found, expected in ((out, mean), (pull(outer)[4], back)):
        bound = sum_bound(64, size=float(np.abs(expected).max()))
        assert_rounded_alike(found, jnp.broadcast_to(expected, out.shape), bound=bound)


def test_what_the_kernels_take() -> None:
    assert gpu_attention.is_supported(length=128, head_size=64, dtype=jnp.bfloat16)
    assert not gpu_attention.is_supported(length=96, head_size=64, dtype=jnp.bfloat16)
    assert not gpu_attention.is_supported(length=128, head_size=48, dtype=jnp.bfloat16)
    assert not gpu_attention.is_supported(length=128, head_size=64, dtype=jnp.float32)


@pytest.mark.parametrize(("length", "programs"), [(128, 3), (512, 4)])
def test_the_kernels_are_lowered_for_a_gpu(length: int, programs: int) -> None:
    dropping = AttentionDropout(seeds=jnp.zeros(2, jnp.uint32), rate=0.1)
    mask = make_mask(length, direction="bidirectional")

    def both(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        *rest, outer = arrays
        out, pull = jax.vjp(lambda *rest: kernels(rest, mask, dropping=dropping, interpret=False), *rest)
        return out, *pull(outer)

    arrays = [array.astype(jnp.bfloat16) for array in random_arrays((2, length, 4, 64))]
    assert lower_for_gpu(both, *arrays).count("__gpu$xla.gpu.triton") == programs
