"""Tell the chips whose vector units, not matrix units, decide how fast a layer is.

XLA computes elementwise work anew inside every matmul that reads its result, tile by tile. On a TPU v5e the matrix
units hide that; a v6e's are four times as fast and its vector units are not, and there it pays to write results once
(benchmarks/RESULTS.md has the cycles).
"""

import jax

_VECTOR_BOUND = ("TPU v6 lite",)  # jax's `device_kind`


def is_vector_bound() -> bool:
    """Say whether what is being traced is for such a chip, by the mesh in force; False where there is none."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device is not None and device.device_kind in _VECTOR_BOUND


def write_once(*values: jax.Array) -> tuple[jax.Array, ...]:
    """Return `values`; on a vector-bound chip they are not computed anew by those who read them."""
    return jax.lax.optimization_barrier(values) if is_vector_bound() else values
