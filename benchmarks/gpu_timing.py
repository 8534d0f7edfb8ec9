"""Timing of a function on the device, with and without its gradients, for the benchmarks of GPU kernels."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def with_gradients(function: Callable[..., Any]) -> Any:
    """Return a jitted function of the arguments and a cotangent that computes the result and the gradients."""

    def both(*arrays: jax.Array) -> Any:
        *arguments, cotangent = arrays
        result, vjp = jax.vjp(function, *arguments)
        return result, vjp(cotangent)

    return jax.jit(both)


def microseconds(function: Callable[..., Any], arrays: list[jax.Array], *, calls: int) -> float:
    """Return the microseconds per call, the median of five rounds of `calls` calls."""
    jax.block_until_ready(function(*arrays))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            last = function(*arrays)
        jax.block_until_ready(last)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times) * 1e6
