"""Compiler options that make steps faster: tables by chip, used by training and by `plan`.

Most hide communication under computation; one is about the loop over scanned layers.

libtpu names its options and has the last word on which exist, so every setting is tried on an empty program first, and
what a version does not know is left out. An option belongs to a chip: libtpu refuses v5e's fusions on other chips,
where they may give wrong results (benchmarks/RESULTS.md has what each is worth).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from bert_jax.chips import CHIPS, chip_of
from bert_jax.config import CompilerOption, parse_compiler_options
from bert_jax.parallel import mesh as meshes

# v5e: reductions become asynchronous, each fused into a matmul. All three are needed together. The threshold, in bytes,
# keeps the combiner from joining the reductions of several layers.
_FUSED = {
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_enable_async_all_reduce": True,
    "xla_jf_crs_combiner_threshold_in_bytes": 2**20,
}
# v6e, v5p: the SparseCores move the data, in reduce-scatters of half the bytes of an all-reduce.
_OFFLOADED = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
}
_OFFLOADED_IN_3D = {
    "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": True,
}
TABLE: Mapping[str, Mapping[str, CompilerOption]] = {
    "v5e": _FUSED,
    "v5p": {**_OFFLOADED, **_OFFLOADED_IN_3D},
    "v6e": _OFFLOADED,
}
# A loop over layers first fills with zeros the arrays in which it collects the gradients of each layer, and then writes
# all of them: 8 and 16 % of the cycles of scanned layers on v5e and v6e (benchmarks/RESULTS.md).
LOOPS: Mapping[str, CompilerOption] = {"xla_tpu_enable_advanced_while_initializer_removal": True}
LOOP_CHIPS = ("v5e", "v6e")
assert TABLE.keys() | set(LOOP_CHIPS) <= CHIPS.keys()


@dataclasses.dataclass(frozen=True)
class CompilerOptions:
    """The options of a run's steps, and those that this compiler refused, with its words."""

    device_kind: str
    values: Mapping[str, CompilerOption]
    refused: Mapping[str, str]

    def lines(self) -> list[str]:
        """Return what a command reports at its start: a line for what is set, one for what is not; none without any."""
        lines = []
        if self.values:
            pairs = ",".join(f"{name}={_text(value)}" for name, value in self.values.items())
            lines.append(f"compiler options for {self.device_kind}: {pairs} (config.mesh.compiler_options)")
        if self.refused:
            reasons = "; ".join(f"{name} ({reason})" for name, reason in self.refused.items())
            lines.append(f"compiler options left out, because the compiler refuses them: {reasons}")
        return lines


def table_of(chip: str, *, devices: int) -> dict[str, CompilerOption]:
    """Return the options of a chip; one device has no communication, so it gets none of `TABLE`."""
    loops = LOOPS if chip in LOOP_CHIPS else {}
    return {**(TABLE.get(chip, {}) if devices > 1 else {}), **loops}


def compiler_options(setting: str, *, mesh: Mesh) -> CompilerOptions:
    """Return the options for `mesh` by `config.mesh.compiler_options`; the first call compiles an empty program.

    Raises:
      UserError: if `setting` cannot be read.
    """
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    table = table_of(chip.name, devices=mesh.size) if chip else {}
    requested = parse_compiler_options(setting, table=table)
    refused = _refused(mesh, tuple(requested.items()))
    values = {name: value for name, value in requested.items() if name not in refused}
    return CompilerOptions(device.device_kind, values, refused)


@functools.cache
def _refused(mesh: Mesh, options: tuple[tuple[str, CompilerOption], ...]) -> dict[str, str]:
    """Return the options that the compiler of `mesh` refuses, each with the first line of its message."""
    left, refused = dict(options), {}
    while left:
        try:
            _compile_empty(mesh, options=left)
            break
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            message = str(error).strip().splitlines()[0][:200]
            for name in [name for name in left if name in str(error)] or list(left):
                refused[name] = message
                del left[name]
    return refused


def _compile_empty(mesh: Mesh, *, options: Mapping[str, Any]) -> None:
    jitted = jax.jit(lambda x: x + 1, compiler_options=dict(options), in_shardings=meshes.replicated(mesh))
    jitted.lower(jax.ShapeDtypeStruct((), "int32")).compile()


def _text(value: CompilerOption) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
