"""Processes of their own for golden facts: each sets its compiler's flags before anything else does."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from tests.golden.finetuning import FROZEN
from tests.runs import ROOT

# Bits depend on vector width (the order of sums) and on threads (how matmuls are divided): the lane fixes both. Frozen
# features are float16, to which XLA compiles no conversion for SSE4_2 ("Failed to materialize symbols", jax 0.10.2).
EXACT_ISA = {"SSE4_2": lambda name: name != FROZEN, "AVX": lambda name: name == FROZEN}
EXACT_PYTHON, EXACT_JAX = (3, 11), "0.10.2"


def why_not_exact() -> str:
    """Return why losses of this machine need not have the golden bits, "" where they must."""
    python, jax, machine = sys.version_info[:2], metadata.version("jax"), (platform.system(), platform.machine())
    if (python, jax, machine) == (EXACT_PYTHON, EXACT_JAX, ("Linux", "x86_64")):
        return ""
    return (
        f"golden losses have the bits of Python {EXACT_PYTHON[0]}.{EXACT_PYTHON[1]} and jax {EXACT_JAX} on Linux "
        f"x86_64, this is Python {python[0]}.{python[1]} and jax {jax} on {' '.join(machine)}"
    )


def measured(names: Sequence[str], *options: str, exact: bool) -> Iterator[dict[str, Any]]:
    """Yield what `measuring.py` prints about each run; exactly as on the lane, or as this machine computes."""
    if not exact:
        yield from _objects(["tests.golden.measuring", *options, *names])
        return
    for isa, takes in EXACT_ISA.items():
        if chosen := list(filter(takes, names)):
            command = ["tests.golden.measuring", "--threads=1", *options, *chosen]
            yield from _objects(command, XLA_FLAGS=f"--xla_cpu_max_isa={isa}")


def compiled(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield what `compiling.py` prints about each program; never from a cache, which has no schedules of kernels."""
    return _objects(["tests.golden.compiling", *names], JAX_ENABLE_COMPILATION_CACHE="false", XLA_FLAGS="")


def _objects(command: list[str], **variables: str) -> Iterator[dict[str, Any]]:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax")}  # its keys hold the flags
    environment = {**cache, **os.environ, **variables, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", *command]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
