"""The GPU's attention kernels: equal to the reference where their source is interpreted, and lowered for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from tiny_model import random_rows, to_device

from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels import gpu_attention
from bert_jax.pretrain.rows import encoder_inputs

# float32 sums of up to 256 terms in another order: relative to the largest value. A single probability dropped by one
# and not by the other would differ by a thousand times as much.
TOLERANCE = 2e-6


def make_mask(length: int, *, direction: str) -> AttentionMask:
    """Return the mask of two rows of three instances and padding."""
    inputs = encoder_inputs(to_device(random_rows(3, batch=2, length=length, instances=3)))
    return AttentionMask(inputs.segment_ids, inputs.position_ids, direction=direction)


def kernels(
    qkv: tuple[jax.Array, ...], mask: AttentionMask, *, dropping: AttentionDropout | None, interpret: bool
) -> jax.Array:
    """Attend by the kernels."""
    plan = gpu_attention.make_plan(
        length=qkv[0].shape[1],
        head_size=qkv[0].shape[3],
        rate=0.0 if dropping is None else dropping.rate,
        left_to_right=mask.direction == "left_to_right",
    )
    query, key, value = qkv
    return gpu_attention.gpu_attention(
        (query, key, value),
        segment_ids=mask.segment_ids,
        position_ids=mask.position_ids,
        seeds=jnp.zeros(len(query), jnp.uint32) if dropping is None else dropping.seeds,
        first_head=jnp.int32(0),
        plan=plan,
        interpret=interpret,
    )


@pytest.mark.parametrize(
    ("length", "heads", "head_size", "rate", "direction"),
    [
        (128, 5, 64, 0.1, "bidirectional"),
        (256, 2, 32, 0.1, "left_to_right"),
        (64, 2, 128, 0.0, "bidirectional"),
        (192, 2, 16, 0.3, "bidirectional"),
    ],
)
def test_the_kernels_equal_the_reference_in_values_gradients_and_what_they_drop(
    length: int, heads: int, head_size: int, rate: float, direction: str
) -> None:
    mask = make_mask(length, direction=direction)
    keys = jax.random.split(jax.random.key(length), 4)
    *qkv, outer = [jax.random.normal(key, (2, length, heads, head_size)) for key in keys]
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(2))
    dropping = AttentionDropout.create(dropout, rate=rate, site=1)

    def reference(*qkv: jax.Array) -> jax.Array:
        query, key, value = (Projected(part, jnp.zeros(part.shape[2:])) for part in qkv)
        rest = {"dropout": dropout, "rate": rate, "site": 1, "implementation": "reference"}
        return attend(query, key=key, value=value, mask=mask, **rest)

    def ours(*qkv: jax.Array) -> jax.Array:
        return kernels(qkv, mask, dropping=dropping, interpret=True)

    expected, pull_expected = jax.vjp(reference, *qkv)
    actual, pull = jax.vjp(ours, *qkv)
    for one, other in zip((actual, *pull(outer)), (expected, *pull_expected(outer)), strict=True):
        assert np.abs(one - other).max() <= TOLERANCE * np.abs(other).max()


def test_rows_with_nothing_to_see_are_finite() -> None:
    place = jnp.broadcast_to(jnp.arange(64), (1, 64))
    mask = AttentionMask(jnp.zeros((1, 64), jnp.int32), place, direction="bidirectional")
    qkv = tuple(jax.random.normal(key, (1, 64, 2, 16)) for key in jax.random.split(jax.random.key(0), 3))
    out, pull = jax.vjp(lambda *arrays: kernels(arrays, mask, dropping=None, interpret=True), *qkv)
    assert all(np.isfinite(array).all() for array in (out, *pull(out)))


def test_what_the_kernels_take() -> None:
    assert gpu_attention.is_supported(length=128, head_size=64, dtype=jnp.bfloat16)
    assert not gpu_attention.is_supported(length=96, head_size=64, dtype=jnp.bfloat16)
    assert not gpu_attention.is_supported(length=128, head_size=48, dtype=jnp.bfloat16)
    assert not gpu_attention.is_supported(length=128, head_size=64, dtype=jnp.float32)


@pytest.mark.parametrize(("length", "programs"), [(128, 2), (512, 3)])
def test_the_kernels_are_lowered_for_a_gpu(length: int, programs: int) -> None:
    sharding = pytest.importorskip("jax.sharding", reason="this jax cannot lower for a GPU that is not there")
    if not hasattr(sharding, "AbstractDevice"):
        pytest.skip("this jax cannot lower for a GPU that is not there")
    device = sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    dropping = AttentionDropout(seeds=jnp.zeros(2, jnp.uint32), rate=0.1)
    mask = make_mask(length, direction="bidirectional")

    def both(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        *qkv, outer = arrays
        out, pull = jax.vjp(lambda *qkv: kernels(qkv, mask, dropping=dropping, interpret=False), *qkv)
        return out, *pull(outer)

    shape = jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16)
    with sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(both).trace(*[shape] * 4).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == programs
