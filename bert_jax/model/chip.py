"""The chip that a program is traced for, where the fastest form depends on the chip.

XLA fuses elementwise operations into every matmul that reads their result, and recomputes them there tile by tile. On a
TPU v5e the matrix units hide that. A v6e has matrix units four times as fast, but not vector units, so writing results
once is faster (benchmarks/RESULTS.md has the cycles). On a GPU, matmuls are library calls, and the operations between
them are bound by memory bandwidth.
"""

import functools

import jax

from bert_jax.model.kernels import backends

# jax's `device_kind` of the chips.
_VECTOR_BOUND = ("TPU v6 lite", "TPU v6e")
_WRITES_NORMS = ("TPU v5", "TPU v5p", *_VECTOR_BOUND)
_HASHES_SLOWLY = ("TPU v4",)
_HAS_LITTLE_VMEM = ("TPU v4",)  # 16 MiB; the others 64 and more
_MIN_CAPABILITY = 8.0  # compute capability (Ampere): XLA's Triton supports none below


def is_vector_bound() -> bool:
    """Return whether the current mesh is of chips whose vector units are the bottleneck; False without a mesh."""
    return _device_kind() in _VECTOR_BOUND


def writes_norms() -> bool:
    """Return whether a kernel should write the result of a norm, for the chip that is traced for.

    On a v5e it is faster to recompute the norm in the matmuls that read it (`kernels/fused_residual_norm.py`).
    """
    return _device_kind() in _WRITES_NORMS


def uses_tpu_norm_kernels() -> bool:
    """Return whether to trace the norm's TPU kernels: on all TPUs except v4, where the hash is too slow."""
    kind = _tpu_kind()
    return kind is not None and kind.startswith("TPU") and kind not in _HASHES_SLOWLY


def has_little_vmem() -> bool:
    """Return whether the program is traced for a TPU whose VMEM is 16 MiB."""
    return _tpu_kind() in _HAS_LITTLE_VMEM


def is_gpu() -> bool:
    """Return whether the program is traced for a GPU of this machine that our kernels support.

    The current mesh may have other chips (a plan for TPUs). Without a mesh, the default backend counts.
    """
    kind = _device_kind()
    return jax.default_backend() == "gpu" and kind in (None, jax.devices()[0].device_kind) and _has_kernels()


def is_cpu() -> bool:
    """Return whether the program being traced is for CPUs: by the mesh in force, else by the default backend."""
    return (_device_kind() or jax.default_backend()) == "cpu"


def materialize(*values: jax.Array) -> tuple[jax.Array, ...]:
    """Return `values`; on a vector-bound chip they are written to memory and not recomputed in each reader."""
    return jax.lax.optimization_barrier(values) if is_vector_bound() else values


def gpu_obstacle() -> str | None:
    """Return what keeps our kernels from running on this machine's GPU, None where nothing does."""
    # jax calls Pallas through Triton deprecated: without it a GPU computes the plain forms.
    if (name := backends.GPU.missing()) is not None:
        return name
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    if capability.replace(".", "", 1).isdecimal() and float(capability) >= _MIN_CAPABILITY:
        return None
    return f"this GPU's compute capability is {capability or 'unknown'}, and {_MIN_CAPABILITY} (Ampere) is the least"


@functools.cache
def _has_kernels() -> bool:
    return gpu_obstacle() is None


def _tpu_kind() -> str | None:
    """Return the kind of the current mesh's devices; without a mesh, of this machine's TPU."""
    kind = _device_kind()
    return jax.devices()[0].device_kind if kind is None and jax.default_backend() == "tpu" else kind


def _device_kind() -> str | None:
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return None if device is None else device.device_kind
