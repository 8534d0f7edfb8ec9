"""Tell what the chip is that is traced for, where one way of writing the same suits one and hurts another.

XLA computes elementwise work anew inside every matmul that reads its result, tile by tile. On a TPU v5e the matrix
units hide that; a v6e's are four times as fast and its vector units are not, and there it pays to write results once
(benchmarks/RESULTS.md has the cycles). A GPU's matmuls are library calls: what stands between them is bound by memory.
"""

import functools
import importlib.util

import jax

# By jax's `device_kind`.
_VECTOR_BOUND = ("TPU v6 lite", "TPU v6e")
_NORMALISES_ONCE = ("TPU v5", "TPU v5p", *_VECTOR_BOUND)
_HASHES_SLOWLY = ("TPU v4",)
_OLDEST = 8.0  # compute capability (Ampere): XLA's Triton takes none below


def is_vector_bound() -> bool:
    """Say whether what is being traced is for such a chip, by the mesh in force; False where there is none."""
    return _device_kind() in _VECTOR_BOUND


def normalises_once() -> bool:
    """Say whether a norm's result is best written once, by a kernel, on the chip that is traced for.

    On a v5e the matmuls that read it had better normalize each tile anew (`kernels/fused_residual_norm.py`).
    """
    return _device_kind() in _NORMALISES_ONCE


def takes_tpu_norm() -> bool:
    """Say whether the norm's TPU kernels are to be traced: for TPUs, but for the v4, which hashes too slowly."""
    kind = _device_kind()
    if kind is None and jax.default_backend() == "tpu":
        kind = jax.devices()[0].device_kind
    return kind is not None and kind.startswith("TPU") and kind not in _HASHES_SLOWLY


def is_gpu() -> bool:
    """Say whether what is being traced is for a GPU of this machine that our kernels run on.

    The mesh in force may be of other chips (a plan for a TPU); where none is, it is the default backend's.
    """
    kind = _device_kind()
    return jax.default_backend() == "gpu" and kind in (None, jax.devices()[0].device_kind) and _has_kernels()


def is_cpu() -> bool:
    """Return whether what is being traced is for CPUs, by the mesh in force, else by the default backend."""
    return (_device_kind() or jax.default_backend()) == "cpu"


def write_once(*values: jax.Array) -> tuple[jax.Array, ...]:
    """Return `values`; on a vector-bound chip they are not computed anew by those who read them."""
    return jax.lax.optimization_barrier(values) if is_vector_bound() else values


@functools.cache
def _has_kernels() -> bool:
    # jax calls Pallas through Triton deprecated: without it a GPU computes the plain forms.
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return capability.replace(".", "", 1).isdecimal() and float(capability) >= _OLDEST


def _device_kind() -> str | None:
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return None if device is None else device.device_kind
