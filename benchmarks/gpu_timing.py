"""Time a function on the device, alone and with its gradients; what the benchmarks of GPU kernels share."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def with_gradients(function: Callable[..., Any]) -> Any:
    """Return a jitted function of the arguments and a cotangent."""

    def both(*arrays: jax.Array) -> Any:
        *arguments, outer = arrays
        result, pull = jax.vjp(function, *arguments)
        return result, pull(outer)

    return jax.jit(both)


def microseconds(function: Callable[..., Any], arrays: list[jax.Array], *, calls: int) -> float:
    """Return the median of five rounds of so many calls."""
    jax.block_until_ready(function(*arrays))
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(calls):
            last = function(*arrays)
        jax.block_until_ready(last)
        times.append((time.perf_counter() - begun) / calls)
    return statistics.median(times) * 1e6
