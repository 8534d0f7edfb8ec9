"""The TPU kernel for attention to a window equals the plain form: values, gradients, what it drops, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import random_arrays, results

from bert_jax.config import MeshConfig
from bert_jax.model import attention
from bert_jax.model.attention import AttentionMask
from bert_jax.model.kernels import fused_attention, long_attention, window_attention
from bert_jax.parallel import mesh as meshes
from tests.rounding import assert_attention_rounded_alike

pytestmark = pytest.mark.numerics

WINDOW = 64


def packed(lengths: list[list[int]], *, length: int, window: int = WINDOW, direction: str = "bidirectional"):
    """Return the mask of sequences with instances of these lengths, then padding."""
    segments, positions = np.zeros((2, len(lengths), length), np.int32)
    for row, parts in enumerate(lengths):
        start = 0
        for number, part in enumerate(parts, 1):
            segments[row, start : start + part] = number
            positions[row, start : start + part] = np.arange(part)
            start += part
        positions[row, start:] = np.arange(length - start)
    return AttentionMask(jnp.asarray(segments), jnp.asarray(positions), direction=direction, window=window)


@pytest.fixture
def kernel_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel compute lengths that another one is faster at: interpreted, short ones take less time."""
    monkeypatch.setattr(window_attention, "MIN_LENGTH", 0)
    monkeypatch.setattr(window_attention, "_MAX_BLOCK", 128)


def assert_kernel_equals_reference(arrays: list[jax.Array], *, mask: AttentionMask, rate: float) -> None:
    """Compare output and gradients."""
    arrays = without_padding(arrays, mask=mask)
    actual, expected = (results(name, arrays, mask=mask, rate=rate) for name in ("pallas", "reference"))
    assert_alike_but_for_padding(actual, expected, arrays=arrays, mask=mask, rate=rate)


def without_padding(arrays: list[jax.Array], *, mask: AttentionMask) -> list[jax.Array]:
    """Return the arrays with a cotangent of 0 at padding, whose output nothing reads."""
    return [*arrays[:-1], arrays[-1] * (mask.segment_ids > 0)[..., None, None]]


def assert_alike_but_for_padding(
    actual: list[jax.Array], expected: list[jax.Array], *, arrays: list[jax.Array], mask: AttentionMask, rate: float
) -> None:
    real = (mask.segment_ids > 0)[..., None, None]
    actual, expected = [actual[0] * real, *actual[1:]], [expected[0] * real, *expected[1:]]
    assert_attention_rounded_alike(actual, expected, arrays=arrays, mask=mask, rate=rate)


# Instances as long as the window reaches, one more and one less; the whole sequence; padding at the end.
@pytest.mark.parametrize(
    ("length", "block", "instances"),
    [
        (256, 128, [[63, 66, 127], [256]]),
        pytest.param(384, 128, [[64, 65, 129, 126], [130, 63, 65]], marks=pytest.mark.slow),
        pytest.param(512, 256, [[512], [127, 130, 128]], marks=pytest.mark.slow),
        pytest.param(1024, 512, [[1000]], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("direction", ["bidirectional", pytest.param("left_to_right", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("kernel_at_every_length")
def test_the_kernel_equals_the_reference_however_a_sequence_is_cut(
    length: int, block: int, instances: list[list[int]], direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_attention, "_MAX_BLOCK", block)
    assert window_attention.block_size(length) == block
    arrays = random_arrays(batch=len(instances), length=length, heads=2)
    mask = packed(instances, length=length, direction=direction)
    assert_kernel_equals_reference(arrays, mask=mask, rate=0.1)


@pytest.mark.parametrize("window", [1, *(pytest.param(size, marks=pytest.mark.slow) for size in (63, 100, 128))])
@pytest.mark.usefixtures("kernel_at_every_length")
def test_the_kernel_takes_every_window_up_to_a_chunk(window: int) -> None:
    arrays = random_arrays(batch=1, length=256, heads=2)
    assert_kernel_equals_reference(arrays, mask=packed([[140, 100]], length=256, window=window), rate=0.0)


@pytest.mark.usefixtures("kernel_at_every_length")
@pytest.mark.slow
@pytest.mark.parametrize(("heads", "scores"), [(8, 12), (6, 100)])
def test_the_kernel_equals_the_reference_however_heads_are_shared_out(
    heads: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_attention, "_MAX_BLOCK", 512)
    monkeypatch.setattr(window_attention, "_MAX_SCORES", scores)
    assert window_attention.grid_steps(length=256, heads=heads) == (2 if heads == 8 else 1)
    arrays = random_arrays(batch=1, length=256, heads=heads)
    assert_kernel_equals_reference(arrays, mask=packed([[200, 40]], length=256), rate=0.1)


@pytest.mark.usefixtures("kernel_at_every_length")
def test_a_sequence_of_padding_is_finite_and_so_are_its_gradients() -> None:
    arrays = random_arrays(batch=2, length=256, heads=2)
    found = results("pallas", arrays, mask=packed([[], [30]], length=256), rate=0.1)
    assert all(np.isfinite(array).all() for array in found)


@pytest.mark.usefixtures("kernel_at_every_length")
@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_the_kernel_drops_the_same_on_every_mesh(tensor: int) -> None:
    mask = packed([[128], [100], [60, 60], [70, 58]], length=128)
    arrays = without_padding(random_arrays(batch=4, length=128, heads=4), mask=mask)
    expected = results("pallas", arrays, mask=mask, rate=0.1)
    with meshes.use_mesh(meshes.make_mesh(MeshConfig(4 // tensor, 1, tensor), devices=jax.devices()[:4])):
        sharded = jax.jit(lambda *values: results("pallas", list(values), mask=mask, rate=0.1))(*arrays)
    assert_alike_but_for_padding(sharded, expected, arrays=arrays, mask=mask, rate=0.1)


# Shorter than three chunks: the kernel of BERT, which masks what is too far away.
@pytest.mark.parametrize(
    ("length", "instances"), [(128, [[128], [100]]), pytest.param(256, [[63, 66, 127], [200]], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("direction", ["bidirectional", "left_to_right"])
def test_short_sequences_are_computed_by_the_fused_kernel(
    length: int, instances: list[list[int]], direction: str
) -> None:
    arrays = random_arrays(batch=2, length=length, heads=2)
    mask = packed(instances, length=length, window=20, direction=direction)
    assert_kernel_equals_reference(arrays, mask=mask, rate=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["bidirectional", "left_to_right"])
def test_long_sequences_without_a_window_are_computed_by_splash_attention(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (attention, fused_attention):
        monkeypatch.setattr(module, "MAX_LENGTH", 128)
    monkeypatch.setattr(long_attention, "_BLOCKS", (128,))
    assert long_attention.is_supported(length=384, heads=2, head_size=64, rate=0.0)
    assert not long_attention.is_supported(length=384, heads=2, head_size=64, rate=0.1)
    arrays = random_arrays(batch=2, length=384, heads=2)
    mask = packed([[130, 200], [384]], length=384, window=0, direction=direction)
    assert_kernel_equals_reference(arrays, mask=mask, rate=0.0)


def test_other_windows_and_shapes_are_computed_by_the_plain_form() -> None:
    shape = {"length": 256, "heads": 2, "head_size": 64, "window": 64}
    assert window_attention.is_supported(**shape)
    for change in ({"length": 200}, {"heads": 3}, {"head_size": 32}, {"window": 129}, {"window": 0}):
        assert not window_attention.is_supported(**{**shape, **change})
