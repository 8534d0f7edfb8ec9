"""Time our GPU attention kernels with different block sizes, and compare them with the reference on the GPU.

    python benchmarks/attention_gpu.py --max_seq_length=128 --batch_size=256
    python benchmarks/attention_gpu.py --max_seq_length=512 --batch_size=64 --sweep

Prints, for 16 heads of 64 (BERT-Large) and dropout 0.1:

* the errors of output and gradients of our kernels and of the reference, both in bfloat16, against the reference in
  float32, relative to the largest value;
* microseconds of the forward pass, and of forward and backward pass, of our kernels, the reference, and cuDNN without
  dropout.

Needs a CUDA build of jax.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_timing import microseconds, with_gradients
from bert_jax.model.attention import AttentionMask, Projected, attend
from bert_jax.model.attention_dropout import AttentionDropout
from bert_jax.model.dropout import Dropout
from bert_jax.model.kernels.gpu_attention import Blocks, Tiling, gpu_attention, make_plan

LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens per sequence.")
BATCH = flags.DEFINE_integer("batch_size", 256, "Sequences.")
HEADS = flags.DEFINE_integer("heads", 16, "Heads.")
HEAD_SIZE = flags.DEFINE_integer("head_size", 64, "Head size.")
SWEEP = flags.DEFINE_bool("sweep", False, "Also time other block sizes.")
RATE = flags.DEFINE_float("rate", 0.1, "Dropout rate.")
SHOWN = flags.DEFINE_integer("shown", 6, "Number of best results of the sweep to print per pass.")


def problem(batch: int, *, dtype: Any) -> tuple[list[jax.Array], AttentionMask]:
    """Return query, key, value, a cotangent, and the mask: three instances per sequence and some padding."""
    shape = (batch, LENGTH.value, HEADS.value, HEAD_SIZE.value)
    arrays = [
        jax.random.normal(key, shape, jnp.float32).astype(dtype) for key in jax.random.split(jax.random.key(0), 4)
    ]
    positions = np.broadcast_to(np.arange(LENGTH.value), shape[:2])
    segments = np.where(positions < LENGTH.value - 7, 1 + 3 * positions // LENGTH.value, 0)
    return arrays, AttentionMask(jnp.asarray(segments), jnp.asarray(positions), direction="bidirectional")


def run(implementation: str, arrays: list[jax.Array], mask: AttentionMask, *, rate: float) -> Callable[..., Any]:
    """Return attention by an implementation, as a function of q, k and v."""
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(len(arrays[0]))) if rate else None

    def call(*qkv: jax.Array) -> jax.Array:
        query, key, value = (Projected(part, jnp.zeros(part.shape[2:], part.dtype)) for part in qkv)
        rest = {"dropout": dropout, "rate": rate, "site": 1, "implementation": implementation}
        return attend(query, key=key, value=value, mask=mask, **rest)

    return call


def with_plan(plan: Tiling, arrays: list[jax.Array], mask: AttentionMask) -> Callable[..., Any]:
    """Return attention by our kernels with the block sizes of `plan`, as a function of q, k and v."""
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(len(arrays[0])))
    dropping = AttentionDropout.create(dropout, rate=plan.rate, site=1)
    ids = {"segment_ids": mask.segment_ids, "position_ids": mask.position_ids, "first_head": jnp.int32(0)}
    seeds = jnp.zeros(len(arrays[0]), jnp.uint32) if dropping is None else dropping.seeds
    zeros = jnp.zeros(arrays[0].shape[2:], arrays[0].dtype)
    return lambda *qkv: gpu_attention(qkv, biases=(zeros, zeros, zeros), **ids, seeds=seeds, plan=plan)


def compile_all(functions: list[Any], arguments: list[list[jax.Array]]) -> list[Any]:
    """Compile on all cores. Return the compiled functions, with an exception for each that does not fit the chip."""

    def compile_one(function: Any, arrays: list[jax.Array]) -> Any:
        try:
            return function.lower(*arrays).compile()
        except Exception as error:  # these block sizes do not fit the chip
            return error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, functions, arguments))


def errors() -> None:
    """Print the errors of kernels and reference in bfloat16 against the reference in float32."""
    wide, mask = problem(4, dtype=jnp.float32)
    wide = [array.astype(jnp.bfloat16).astype(jnp.float32) for array in wide]
    narrow = [array.astype(jnp.bfloat16) for array in wide]
    with jax.default_matmul_precision("highest"):
        expected = jax.tree.leaves(with_gradients(run("reference", wide, mask, rate=RATE.value))(*wide))
    for name in ("pallas", "reference"):
        actual = jax.tree.leaves(with_gradients(run(name, narrow, mask, rate=RATE.value))(*narrow))
        differences = [
            float(jnp.abs(a.astype(jnp.float32) - e).max() / jnp.abs(e).max())
            for a, e in zip(actual, expected, strict=True)
        ]
        print(f"error {name} (output, d_query, d_key, d_value):", *(f"{d:.4f}" for d in differences), flush=True)


def candidates(plan: Tiling) -> Iterator[tuple[str, Tiling]]:
    """Yield plans that differ from the default in one pass, with a description."""
    sizes = [size for size in (32, 64, 128) if LENGTH.value % size == 0]
    for name in ("forward", "dkv", "dq"):
        if name == "dq" and plan.is_one_block:
            continue
        for queries, keys, warps, stages in itertools.product(sizes, sizes, (4, 8), (1, 2, 3)):
            if name == "dkv" and (keys == LENGTH.value) != plan.is_one_block:
                continue
            blocks = Blocks(queries=queries, keys=keys, warps=warps, stages=stages)
            if 2048 <= queries * keys <= 128 * 128 / (2 if name != "forward" else 1):
                description = f"{name} {queries}x{keys} warps {warps} stages {stages}"
                yield description, dataclasses.replace(plan, **{name: blocks})


def main(argv: list[str]) -> None:
    """Print errors and times."""
    del argv
    errors()
    arrays, mask = problem(BATCH.value, dtype=jnp.bfloat16)
    plan = make_plan(length=LENGTH.value, head_size=HEAD_SIZE.value, rate=RATE.value, left_to_right=False)
    contestants = {
        "ours": with_plan(plan, arrays, mask),
        "reference": run("reference", arrays, mask, rate=RATE.value),
        "ours, no dropout": with_plan(dataclasses.replace(plan, rate=0.0), arrays, mask),
        "cudnn, no dropout": functools.partial(jax.nn.dot_product_attention, mask=mask.dense(), implementation="cudnn"),
    }
    for name, function in contestants.items():
        try:
            forward = microseconds(jax.jit(function), arrays[:3], calls=10)
            both = microseconds(with_gradients(function), arrays, calls=10)
            print(f"{name:<50} {forward:>9.0f} {both:>9.0f}", flush=True)
        except Exception as error:  # report it, and time the others
            print(f"{name:<50} {str(error)[:200]!r}", flush=True)
    if not SWEEP.value:
        return
    plans = list(candidates(plan))
    functions = [with_plan(other, arrays, mask) for _, other in plans]
    is_forward = [name.startswith("forward") for name, _ in plans]
    jitted = [jax.jit(f) if only else with_gradients(f) for f, only in zip(functions, is_forward, strict=True)]
    arguments = [arrays[:3] if only else arrays for only in is_forward]
    times: dict[str, list[tuple[float, str]]] = {}
    for (name, _), compiled, inputs in zip(plans, compile_all(jitted, arguments), arguments, strict=True):
        if not isinstance(compiled, Exception):
            times.setdefault(name.split()[0], []).append((microseconds(compiled, inputs, calls=10), name))
    for results in times.values():
        for time, name in sorted(results)[: SHOWN.value]:
            print(f"{name:<50} {time:>9.0f}", flush=True)


if __name__ == "__main__":
    app.run(main)
