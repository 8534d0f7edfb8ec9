"""Kernels compile on every chip at the bounds of what they take, and plans name them."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from test_configs import load

from bert_jax.config import PhaseConfig, TrainConfig
from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels import fused_attention
from bert_jax.model.kernels.fused_residual_norm import fused_residual_norm, is_supported
from bert_jax.model.rotation import Rotation
from tests.tpu_plans import plan_config, thin


def on_one_chip(topology: str) -> NamedSharding:
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    return NamedSharding(Mesh(np.array([device]), "x"), PartitionSpec())


def compiled_text(function: Callable[..., Any], *arrays: Any) -> str:
    text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",)).compile().as_text()
    assert text is not None
    return text


def compile_norm(topology: str, shape: tuple[int, int, int], dtype: str) -> str:
    """Compile the norm's kernels, both ways, for one chip, in the process with the compiler; return the program."""
    sharding = on_one_chip(topology)
    tokens, features = (jax.ShapeDtypeStruct(size, dtype, sharding=sharding) for size in (shape, shape[-1:]))
    seeds = jax.ShapeDtypeStruct(shape[:1], "uint32", sharding=sharding)
    assert is_supported(shape)

    def both(hidden: Any, product: Any, bias: Any, seeds: Any, d_out: Any) -> Any:
        def norm(*arrays: Any) -> Any:
            return fused_residual_norm(arrays, eps=1e-12, seeds=seeds, rate=0.1, fuse_forward=True)

        out, pull = jax.vjp(norm, hidden, product, bias, bias, bias)
        return out, pull(d_out)

    return compiled_text(both, tokens, tokens, features, seeds, tokens)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((7, 64, 128), "bfloat16"),
        ((5, 448, 1152), "bfloat16"),
        ((3, 1024, 2048), "float32"),
        ((1, 64, 4096), "float32"),
    ],
)
def test_the_norms_kernels_compile_at_the_bounds_of_what_they_take(
    topology: str, shape: tuple[int, int, int], dtype: str, compiler: Callable[..., Any]
) -> None:
    assert compiler(compile_norm, topology, shape, dtype).count('custom_call_target="tpu_custom_call"') == 2


def compile_attention(topology: str, shape: tuple[int, int, int, int], dtype: str) -> str:
    """Compile the attention kernel, both ways, for one chip, in the process with the compiler; return the program."""
    sharding = on_one_chip(topology)
    batch, length, heads, size = shape
    assert fused_attention.is_supported(length=length, heads=heads, head_size=size)
    tokens, bias = (jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding) for dimensions in (shape, shape[2:]))
    places = jax.ShapeDtypeStruct((batch, length), "int32", sharding=sharding)
    seeds = jax.ShapeDtypeStruct((batch,), "uint32", sharding=sharding)

    def both(tokens: Any, bias: Any, places: Any, seeds: Any) -> Any:
        def attend(query: Any, key: Any, value: Any) -> Any:
            return fused_attention.fused_attention(
                (query, key, value),
                biases=(bias, bias, bias),
                segment_ids=places,
                position_ids=places,
                left_to_right=True,
                seeds=seeds,
                first_head=jnp.int32(0),
                rate=0.1,
            )

        out, pull = jax.vjp(attend, tokens, tokens + 1, tokens + 2)
        return out, pull(tokens)

    return compiled_text(both, tokens, bias, places, seeds)


def compile_window_kernels(topology: str, length: int) -> str:
    """Compile attention to a window and the rotation, both ways, for one chip, in the process with the compiler."""
    sharding, shape = on_one_chip(topology), (2, length, 4, 64)
    tokens = jax.ShapeDtypeStruct(shape, "bfloat16", sharding=sharding)
    places = jax.ShapeDtypeStruct(shape[:2], "int32", sharding=sharding)

    def both(tokens: Any, places: Any) -> Any:
        def attended(query: Any, key: Any, value: Any) -> Any:
            rotation = Rotation.create(places, head_size=64, base=10_000.0)
            return attend(
                Projected(query, rotation=rotation),
                key=Projected(key, rotation=rotation),
                value=Projected(value),
                mask=AttentionMask(places, places, direction="bidirectional", window=64),
                dropout=Dropout(seed=jnp.uint32(0), rows=jnp.arange(2)),
                rate=0.1,
                site=0,
                implementation="auto",
            )

        out, pull = jax.vjp(attended, tokens, tokens + 1, tokens + 2)
        return out, pull(tokens)

    return compiled_text(both, tokens, places)


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_kernels_of_windows_compile_on_every_chip(topology: str, compiler: Callable[..., Any]) -> None:
    text = compiler(compile_window_kernels, topology, 1024)
    assert text.count("tpu_custom_call") >= 6  # attention both ways; queries and keys rotated, both ways
    for name in ("window_attention_forward", "window_attention_backward", "rotation"):
        assert name in text


@pytest.mark.parametrize(
    ("topology", "shape", "dtype"),
    [
        # What needs the most VMEM: as many heads in a step as fit, at the greatest length.
        *((topology, (3, 512, 16, 64), "float32") for topology in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")),
        ("v5e:2x2", (2, 512, 16, 64), "bfloat16"),
        *(
            pytest.param(topology, (2, 1024, 12, 64), "bfloat16", marks=pytest.mark.slow)
            for topology in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")
        ),
        *(
            pytest.param(topology, (2, 1024, 12, 64), "float32", marks=pytest.mark.slow)
            for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")  # a v4 has no VMEM for it
        ),
        ("v5e:2x2", (3, 384, 6, 64), "bfloat16"),
    ],
)
def test_the_attention_kernel_compiles_at_the_bounds_of_what_it_takes(
    topology: str, shape: tuple[int, int, int, int], dtype: str, compiler: Callable[..., Any]
) -> None:
    assert compiler(compile_attention, topology, shape, dtype).count('custom_call_target="tpu_custom_call"') == 2


def test_unrolled_layers_and_the_kernel_are_planned(compiler: Callable[..., Any]) -> None:
    config = thin(load("large_tpu"), chips=4)
    model = dataclasses.replace(config.model, num_hidden_layers=2, scan_layers=False)
    train = TrainConfig(batch_size=32, phases=(PhaseConfig(max_seq_length=128),))
    result, _ = compiler(plan_config, dataclasses.replace(config, model=model, train=train), "v5e:2x2")
    (phase,) = result["phases"]
    kernels = {item["name"]: item for item in phase["kernels"]}
    assert kernels.keys() == {"attention_forward", "attention_backward", "residual_norm_backward"}
    calls = collections.Counter()
    for item in phase["kernels"]:
        calls[item["name"]] += item["times"]
    assert calls == {"attention_forward": 2, "attention_backward": 2, "residual_norm_backward": 4}
    # model/kernels/fused_residual_norm.py: 1,100 cycles a row of 128 and 1,024 features.
    assert kernels["residual_norm_backward"]["cycles"] == pytest.approx(8 * 1_110, rel=0.1)
    # model/kernels/fused_attention.py: 2,160 and 3,540 cycles a row of 128, eight rows a chip.
    assert kernels["attention_forward"]["cycles"] == pytest.approx(8 * 2_160, rel=0.1)
    assert kernels["attention_backward"]["cycles"] == pytest.approx(8 * 3_540, rel=0.1)
