"""Tell what the chip is that is traced for, where one way of writing the same suits one and hurts another.

XLA computes elementwise work anew inside every matmul that reads its result, tile by tile. On a TPU v5e the matrix
units hide that; a v6e's are four times as fast and its vector units are not, and there it pays to write results once
(benchmarks/RESULTS.md has the cycles). A GPU's matmuls are library calls: what stands between them is bound by memory.
"""

import jax

_VECTOR_BOUND = ("TPU v6 lite",)  # jax's `device_kind`
_GPU = ("NVIDIA", "Tesla")  # how it begins


def is_vector_bound() -> bool:
    """Say whether what is being traced is for such a chip, by the mesh in force; False where there is none."""
    return _device_kind() in _VECTOR_BOUND


def is_gpu() -> bool:
    """Say whether what is being traced is for a GPU: by the mesh in force, or the default backend where none is."""
    kind = _device_kind()
    return jax.default_backend() == "gpu" if kind is None else kind.startswith(_GPU)


def write_once(*values: jax.Array) -> tuple[jax.Array, ...]:
    """Return `values`; on a vector-bound chip they are not computed anew by those who read them."""
    return jax.lax.optimization_barrier(values) if is_vector_bound() else values


def _device_kind() -> str | None:
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return None if device is None else device.device_kind
