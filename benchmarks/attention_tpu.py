"""Print the cost of attention in one BERT-Large layer, forward and backward, by the TPU compiler, with no TPU.

    python benchmarks/attention_tpu.py [--chips=v5e,v5p,v6e] [--lengths=128,512] [--implementations=reference,pallas]

Needs `libtpu`. For each chip, length and implementation it compiles a layer with dropout 0.1 everywhere in bfloat16 and
prints thousands of cycles a sequence: what XLA estimates for its own operations, and what our kernels take by the final
schedule that the compiler writes out (`final_bundles`: one line a cycle, `>` marks the depth of a loop), times the
rounds of each loop. Time for which a kernel waits for HBM is not in it: a row of 128 moves 3 MiB, a row of 512 12 MiB.
On a chip of two cores (v5p) the rows are shared out between them, so half the cycles count.
"""

import dataclasses
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bert_jax.config import model_preset
from bert_jax.model.attention import AttentionMask
from bert_jax.model.bert import BertLayer
from bert_jax.model.dropout import Dropout

# Topology to compile for, FLOP a cycle of a chip, cores of a chip.
CHIPS = {"v5e": ("v5e:4x4", 131072, 1), "v5p": ("v5p:2x2x1", 262144, 2), "v6e": ("v6e:4x4", 524288, 1)}
DUMP = Path(tempfile.gettempdir()) / f"attention_tpu_{os.getpid()}"
BATCH = {128: 32, 256: 16, 384: 8, 512: 8}  # rows a chip

_CHIPS = flags.DEFINE_list("chips", ["v5e"], "Chips: v5e, v5p, v6e.")
_LENGTHS = flags.DEFINE_list("lengths", ["128", "512"], "Sequence lengths.")
_IMPLEMENTATIONS = flags.DEFINE_list("implementations", ["reference", "pallas"], "Values of attention_implementation.")


def compile_layer(implementation: str, *, topology: str, length: int, batch: int) -> jax.stages.Compiled:
    """Compile forward and backward pass of a layer for one chip of `topology`."""
    config = dataclasses.replace(model_preset("large"), attention_implementation=implementation)
    layer = BertLayer(config, parent=None)
    one = jnp.zeros((1, 1), jnp.int32)
    sample = {"mask": AttentionMask(one, one, direction="bidirectional"), "dropout": None}
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 1, config.hidden_size)), **sample)["params"])
    )
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    hidden = jax.ShapeDtypeStruct((batch, length, config.hidden_size), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    rows, seed = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)

    def step(params: Any, hidden: Any, segments: Any, positions: Any, rows: Any, seed: Any, d_out: Any) -> Any:
        mask = AttentionMask(segments, positions, direction="bidirectional")
        dropout = Dropout(seed=seed, rows=rows)
        out, pull = jax.vjp(lambda p, x: layer.apply({"params": p}, x, mask=mask, dropout=dropout), params, hidden)
        return out, pull(d_out)

    chip = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0])
    jitted = jax.jit(step, in_shardings=chip, out_shardings=chip)
    return jitted.lower(params, hidden, ids, ids, rows, seed, hidden).compile()


def kernel_cycles(name: str, *, length: int, heads: int = 16) -> int:
    """Return the cycles of our kernel a row of 16 heads, from the newest schedule of that name in the dump.

    Loops: the grid's steps, the groups of four heads in a step, the blocks of 128 queries (but the first, in the
    backward pass, which stands before the loop). A loop of one round is none.
    """
    newest = max(DUMP.glob(f"*{name}*final_bundles.txt"), key=lambda path: path.stat().st_mtime_ns)
    lines = re.findall(r"^\s*0x[0-9a-f]+\s+(?:L[HBE]|P[BF])?\s*:\s*(>*) ?\{", newest.read_text(), re.MULTILINE)
    a_step = min(heads, 512 * 1024 // (128 * length) // 4 * 4)
    while heads % a_step:
        a_step -= 4
    loops = (a_step // 4, length // 128 - ("backward" in name))
    rounds = [heads // a_step, *(count for count in loops if count > 1)]
    total, product = 0, 1
    for depth, count in enumerate(rounds, 1):
        product *= count
        total += product * sum(len(marks) == depth for marks in lines)
    return total


def main(_: list[str]) -> None:
    """Print the table."""
    # Read when the compiler is loaded, at the first topology.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=final_bundles",
    )
    DUMP.mkdir()
    jax.config.update("jax_platforms", "cpu")
    print("chip  T    implementation  XLA K/seq  kernels K/seq  layer K/seq  % of ideal  temporaries MiB/seq")
    for chip in _CHIPS.value:
        topology, flop_a_cycle, cores = CHIPS[chip]
        for length in map(int, _LENGTHS.value):
            ideal = (72 * length * 1024**2 + 12 * length**2 * 1024) / flop_a_cycle / 1000
            for implementation in _IMPLEMENTATIONS.value:
                batch = BATCH[length]
                compiled = compile_layer(implementation, topology=topology, length=length, batch=batch)
                estimates = re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text())
                outside = sum(map(int, estimates)) / batch / 1000
                names = ("attention_forward", "attention_backward") if implementation == "pallas" else ()
                inside = sum(kernel_cycles(name, length=length) for name in names) / cores / 1000
                temporaries = compiled.memory_analysis().temp_size_in_bytes / batch / 2**20
                print(
                    f"{chip:5} {length:<4} {implementation:14} {outside:10.1f} {inside:14.1f} {outside + inside:12.1f}"
                    f" {100 * ideal / (outside + inside):11.1f} {temporaries:20.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
