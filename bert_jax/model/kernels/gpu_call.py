"""Calls of GPU kernels (Pallas, through Triton) that get their arrays by name."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array


def call_by_name(
    kernel: Callable[[Any], None],
    *,
    grid: tuple[int, ...],
    spec: Callable[[str, Any], pl.BlockSpec],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any],
    warps: int,
    stages: int,
    interpret: bool,
    name: str,
) -> dict[str, Array]:
    """Run `kernel(refs)` over the grid and return the outputs; `refs` has an attribute for each array.

    `spec` returns the block of a named array that a program gets; `outputs` are arrays or shapes like the results.
    """
    names = (*inputs, *outputs)
    results = pl.pallas_call(
        lambda *refs: kernel(SimpleNamespace(**dict(zip(names, refs, strict=True)))),
        grid=grid,
        in_specs=[spec(key, array) for key, array in inputs.items()],
        out_specs=[spec(key, array) for key, array in outputs.items()],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs.values()],
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=name,
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))
