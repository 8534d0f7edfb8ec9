"""Print the cost of attention in one layer, forward and backward, by the TPU compiler, without a TPU.

    python benchmarks/attention_tpu.py [--chips=v5e,v5p,v6e] [--lengths=128,512] [--implementations=reference,pallas]
    python benchmarks/attention_tpu.py --model=modernbert-base --lengths=1024,8192 --implementations=plain,auto

Compiles a layer of the model in bfloat16 with its dropout (BERT 0.1 everywhere, ModernBERT none), for each chip, length
and implementation; of ModernBERT a layer with a window, or with `--nowindow` one with global attention. `plain` is
`auto` without the kernels. Prints thousands of
cycles per sequence: XLA's estimate for its own operations, and the cycles of our kernels in the final schedule that the
compiler writes out (`bert_jax/planning/kernels.py`). Needs `libtpu`.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bert_jax.config import model_preset
from bert_jax.model.architectures import architecture_of
from bert_jax.model.attention import AttentionMask
from bert_jax.model.bert.encoder import BertLayer
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels.backends import Backend
from bert_jax.model.modernbert.encoder import ModernBertLayer
from bert_jax.model.rotation import Rotation
from bert_jax.planning.compiling import fresh_schedules, prepare_environment
from bert_jax.planning.hlo import parse_hlo
from bert_jax.planning.kernels import find_kernels
from bert_jax.planning.topology import Topology, parse_topology

TOPOLOGIES = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x1", "v6e": "v6e:4x4"}
TOKENS = 4096  # per chip; at least one sequence

_CHIPS = flags.DEFINE_list("chips", ["v5e"], "Chips: v5e, v5p, v6e.")
_LENGTHS = flags.DEFINE_list("lengths", ["128", "512"], "Sequence lengths.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["reference", "pallas"], "Values of attention_implementation, or plain."
)
_MODEL = flags.DEFINE_string("model", "large", "Model preset: BERT or ModernBERT.")
_WINDOW = flags.DEFINE_bool("window", True, "A layer of ModernBERT with a window.")


def compile_layer(
    implementation: str, *, topology: Topology, length: int, batch: int
) -> tuple[jax.stages.Compiled, Path | None]:
    """Compile a layer's forward and backward pass for one chip of `topology`; also return its folder of schedules."""
    name = "auto" if implementation == "plain" else implementation
    config = dataclasses.replace(model_preset(_MODEL.value), attention_implementation=name)
    is_modern = config.architecture == "modernbert"
    layer: Any = ModernBertLayer(config, parent=None) if is_modern else BertLayer(config, parent=None)
    one = jnp.zeros((1, 1), jnp.int32)

    def context(segments: Any, positions: Any) -> dict[str, Any]:
        window = config.local_attention // 2 if is_modern and _WINDOW.value else 0
        mask = AttentionMask(segments, positions, direction="bidirectional", window=window)
        size = config.hidden_size // config.num_attention_heads
        rotation = {"rotation": Rotation.create(positions, head_size=size, base=10_000.0)} if is_modern else {}
        return {"mask": mask, **rotation}

    sample = {**context(one, one), "dropout": None}
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 1, config.hidden_size)), **sample)["params"])
    )
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    hidden = jax.ShapeDtypeStruct((batch, length, config.hidden_size), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    rows, seed = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)

    def step(params: Any, hidden: Any, segments: Any, positions: Any, rows: Any, seed: Any, d_out: Any) -> Any:
        rest = {**context(segments, positions), "dropout": Dropout(seed=seed, rows=rows)}
        out, pull = jax.vjp(lambda p, x: layer.apply({"params": p}, x, **rest), params, hidden)
        return out, pull(d_out)

    description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    chip = SingleDeviceSharding(description.devices[0])
    jitted = jax.jit(step, in_shardings=chip, out_shardings=chip)
    schedules = fresh_schedules()
    without_kernels = mock.patch.object(Backend, "missing", lambda backend: backend.module)
    with without_kernels if implementation == "plain" else contextlib.nullcontext():
        lowered = jitted.lower(params, hidden, ids, ids, rows, seed, hidden)
    return lowered.compile(), schedules


def layer_flops(length: int) -> float:
    """Return the model FLOPs of the layer per sequence, by the count of its architecture."""
    model = model_preset(_MODEL.value)
    whole = model.global_attn_every_n_layers if model.architecture == "modernbert" else 1
    layers = [whole - 1, whole] if _WINDOW.value and whole > 1 else [0, 1]  # counts that differ by this layer
    fewer, more = (
        architecture_of(model).train_flops_per_row(
            dataclasses.replace(model, num_hidden_layers=count), max_seq_length=length, max_predictions=0
        )
        for count in layers
    )
    return more - fewer


def main(_: list[str]) -> None:
    """Print the table."""
    prepare_environment()
    print("chip  T    implementation  XLA K/seq  kernels K/seq  layer K/seq  % of ideal  temporaries MiB/seq")
    for name in _CHIPS.value:
        topology = parse_topology(TOPOLOGIES[name])
        for length in map(int, _LENGTHS.value):
            ideal = layer_flops(length) / topology.chip.flops_per_cycle / 1000
            for implementation in _IMPLEMENTATIONS.value:
                batch = max(1, TOKENS // length)
                compiled, schedules = compile_layer(implementation, topology=topology, length=length, batch=batch)
                program = parse_hlo(compiled.as_text() or "")
                outside = program.cycles() / batch / 1000
                kernels = find_kernels(program, schedules=schedules, chip=topology.chip)
                inside = sum((kernel.cycles or 0) * kernel.times for kernel in kernels) / batch / 1000
                memory: Any = compiled.memory_analysis()
                temporaries = memory.temp_size_in_bytes / batch / 2**20
                print(
                    f"{name:5} {length:<4} {implementation:14} {outside:10.1f} {inside:14.1f} {outside + inside:12.1f}"
                    f" {100 * ideal / (outside + inside):11.1f} {temporaries:20.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
