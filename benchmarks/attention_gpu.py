"""Time our GPU attention kernels, block size by block size, and compare them with the reference on the GPU.

    python benchmarks/attention_gpu.py --max_seq_length=128 --batch_size=256
    python benchmarks/attention_gpu.py --max_seq_length=512 --batch_size=64 --sweep

First prints the error of output and gradients against the reference in float32 (relative to the largest value), beside
that of the reference in bfloat16; then microseconds of a forward, and of a forward and backward pass, over BERT-Large's
16 heads of 64 with dropout 0.1: ours, the reference's, and cuDNN's without dropout. Needs a CUDA build of jax.
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

LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens a row.")
BATCH = flags.DEFINE_integer("batch_size", 256, "Rows.")
HEADS = flags.DEFINE_integer("heads", 16, "Heads.")
HEAD_SIZE = flags.DEFINE_integer("head_size", 64, "Head size.")
SWEEP = flags.DEFINE_bool("sweep", False, "Time other blocks too.")
RATE = flags.DEFINE_float("rate", 0.1, "Dropout.")
SHOWN = flags.DEFINE_integer("shown", 6, "Best of a sweep to print, of each pass.")


def problem(batch: int, *, dtype: Any) -> tuple[list[jax.Array], AttentionMask]:
    """Return query, key, value and a cotangent, and the mask of rows of three instances and some padding."""
    shape = (batch, LENGTH.value, HEADS.value, HEAD_SIZE.value)
    arrays = [
        jax.random.normal(key, shape, jnp.float32).astype(dtype) for key in jax.random.split(jax.random.key(0), 4)
    ]
    place = np.broadcast_to(np.arange(LENGTH.value), shape[:2])
    segments = np.where(place < LENGTH.value - 7, 1 + 3 * place // LENGTH.value, 0)
    return arrays, AttentionMask(jnp.asarray(segments), jnp.asarray(place), direction="bidirectional")


def run(implementation: str, arrays: list[jax.Array], mask: AttentionMask, *, rate: float) -> Callable[..., Any]:
    """Return a function of q, k and v."""
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(len(arrays[0]))) if rate else None

    def call(*qkv: jax.Array) -> jax.Array:
        query, key, value = (Projected(part, jnp.zeros(part.shape[2:], part.dtype)) for part in qkv)
        rest = {"dropout": dropout, "rate": rate, "site": 1, "implementation": implementation}
        return attend(query, key=key, value=value, mask=mask, **rest)

    return call


def with_plan(plan: Tiling, arrays: list[jax.Array], mask: AttentionMask) -> Callable[..., Any]:
    """Return a function of q, k and v that runs the kernels with these blocks."""
    dropout = Dropout.create(jax.random.key(6), rows=3 + jnp.arange(len(arrays[0])))
    dropping = AttentionDropout.create(dropout, rate=plan.rate, site=1)
    places = {"segment_ids": mask.segment_ids, "position_ids": mask.position_ids, "first_head": jnp.int32(0)}
    seeds = jnp.zeros(len(arrays[0]), jnp.uint32) if dropping is None else dropping.seeds
    zeros = jnp.zeros(arrays[0].shape[2:], arrays[0].dtype)
    return lambda *qkv: gpu_attention(qkv, biases=(zeros, zeros, zeros), **places, seeds=seeds, plan=plan)


def compile_all(functions: list[Any], arguments: list[list[jax.Array]]) -> list[Any]:
    """Return the compiled functions, or the errors of those that do not fit the chip; on all cores."""

    def one(function: Any, some: list[jax.Array]) -> Any:
        try:
            return function.lower(*some).compile()
        except Exception as error:  # a choice that does not fit the chip is no choice
            return error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, functions, arguments))


def errors() -> None:
    """Print how far the kernels and the reference in bfloat16 are from the reference in float32."""
    wide, mask = problem(4, dtype=jnp.float32)
    wide = [array.astype(jnp.bfloat16).astype(jnp.float32) for array in wide]
    narrow = [array.astype(jnp.bfloat16) for array in wide]
    with jax.default_matmul_precision("highest"):
        expected = jax.tree.leaves(with_gradients(run("reference", wide, mask, rate=RATE.value))(*wide))
    for name in ("pallas", "reference"):
        actual = jax.tree.leaves(with_gradients(run(name, narrow, mask, rate=RATE.value))(*narrow))
        found = [
            float(jnp.abs(a.astype(jnp.float32) - e).max() / jnp.abs(e).max())
            for a, e in zip(actual, expected, strict=True)
        ]
        print(f"error {name} (output, d_query, d_key, d_value):", *(f"{error:.4f}" for error in found), flush=True)


def candidates(plan: Tiling) -> Iterator[tuple[str, Tiling]]:
    """Return plans that differ from the default in one pass."""
    sizes = [size for size in (32, 64, 128) if LENGTH.value % size == 0]
    for name in ("forward", "dkv", "dq"):
        if name == "dq" and plan.is_one_block:
            continue
        for queries, keys, warps, stages in itertools.product(sizes, sizes, (4, 8), (1, 2, 3)):
            if name == "dkv" and (keys == LENGTH.value) != plan.is_one_block:
                continue
            blocks = Blocks(queries=queries, keys=keys, warps=warps, stages=stages)
            if 2048 <= queries * keys <= 128 * 128 / (2 if name != "forward" else 1):
                described = f"{name} {queries}x{keys} warps {warps} stages {stages}"
                yield described, dataclasses.replace(plan, **{name: blocks})


def main(argv: list[str]) -> None:
    """Print errors and times."""
    del argv
    errors()
    arrays, mask = problem(BATCH.value, dtype=jnp.bfloat16)
    plan = make_plan(length=LENGTH.value, head_size=HEAD_SIZE.value, rate=RATE.value, left_to_right=False)
    named = {
        "ours": with_plan(plan, arrays, mask),
        "reference": run("reference", arrays, mask, rate=RATE.value),
        "ours, no dropout": with_plan(dataclasses.replace(plan, rate=0.0), arrays, mask),
        "cudnn, no dropout": functools.partial(jax.nn.dot_product_attention, mask=mask.dense(), implementation="cudnn"),
    }
    for name, function in named.items():
        try:
            forward = microseconds(jax.jit(function), arrays[:3], calls=10)
            both = microseconds(with_gradients(function), arrays, calls=10)
            print(f"{name:<50} {forward:>9.0f} {both:>9.0f}", flush=True)
        except Exception as error:  # one that does not run here must not hide the others
            print(f"{name:<50} {str(error)[:200]!r}", flush=True)
    if not SWEEP.value:
        return
    plans = list(candidates(plan))
    functions = [with_plan(other, arrays, mask) for _, other in plans]
    is_forward = [name.startswith("forward") for name, _ in plans]
    jitted = [jax.jit(f) if only else with_gradients(f) for f, only in zip(functions, is_forward, strict=True)]
    given = [arrays[:3] if only else arrays for only in is_forward]
    found: dict[str, list[tuple[float, str]]] = {}
    for (name, _), compiled, some in zip(plans, compile_all(jitted, given), given, strict=True):
        if not isinstance(compiled, Exception):
            found.setdefault(name.split()[0], []).append((microseconds(compiled, some, calls=10), name))
    for choices in found.values():
        for taken, name in sorted(choices)[: SHOWN.value]:
            print(f"{name:<50} {taken:>9.0f}", flush=True)


if __name__ == "__main__":
    app.run(main)
