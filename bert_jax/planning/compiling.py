"""Compilation of the training step for an absent TPU slice."""

import atexit
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from bert_jax import jax_internals
from bert_jax.config import CompilerOption, Config, instances_per_row
from bert_jax.errors import UserError
from bert_jax.limits import check_address_space
from bert_jax.parallel import mesh as meshes
from bert_jax.planning.topology import Topology
from bert_jax.pretrain.open_values import preliminary
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.training.schedule import Phase
from bert_jax.types import Rows

_IDS = SpecialIds(cls_id=101, sep_id=102, mask_id=103, pad_id=0, vocab_size=0)  # the values do not change the program


_SCHEDULES: list[Path] = []  # the compiler's folder for schedules; it reads the option once, when it is loaded


def prepare_environment() -> None:
    """Set up compilation without TPUs. Call it before the first use of jax, which then computes on the CPU.

    Raises:
      UserError: if the limit on address space is too small for the compiler, which would abort.
    """
    if _SCHEDULES:
        return
    check_address_space()
    jax_internals.quiet_libtpu()
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several plans may run at the same time
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # jax has read the variable already, at import
    folder = Path(tempfile.mkdtemp(prefix="bert_jax_plan_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _SCHEDULES.append(folder)
    dump_flags = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {dump_flags}".strip()


def fresh_schedules() -> Path | None:
    """Empty and return the folder where the compiler writes the schedules of the next program."""
    folder = _SCHEDULES[0] if _SCHEDULES else None
    for item in folder.iterdir() if folder else ():
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    return folder


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The optimized program of one phase's step, and its memory in bytes per chip."""

    hlo: str
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int  # without the donated arguments
    code_bytes: int
    schedules: Path | None = None  # of its kernels; the next compilation deletes them

    @property
    def total_bytes(self) -> int:
        """Return the memory that the step needs."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes


class DoesNotFit(Exception):
    """A step needs more memory than a chip has."""

    def __init__(self, needed_bytes: int | None):
        """Store the bytes that the compiler reports, or None if it reports none."""
        super().__init__(f"needs {needed_bytes} bytes")
        self.needed_bytes = needed_bytes


def make_program(config: Config, *, topology: Topology) -> PretrainingProgram:
    """Return the program of `config` on the slice, laid out as `train` would.

    Raises:
      UserError: if the TPU compiler is not installed, does not know the slice, or the config does not divide over it.
    """
    # With this name a v4's two cores are one device, as on a TPU VM. v5p does not need it, other chips have one core.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **options)
    except Exception as error:
        if "libtpu" in str(error) or "TPU backend" in str(error):
            raise UserError("the TPU compiler is not installed: pip install 'bert_jax[plan]'") from error
        reason = re.sub(r"^[A-Z_]+: ", "", str(error).strip().splitlines()[0])[:200]
        if of_host := re.search(r'chips_per_host_bounds "([\dx]+)"', reason):
            reason = f"a host has {of_host[1]} chips, and a slice is made of whole hosts"
        raise UserError(f"--topology={topology.name}: the TPU compiler has no such slice ({reason})") from error
    config = preliminary(config)
    mesh = meshes.make_mesh(config.mesh, devices=description.devices)
    return PretrainingProgram(config, mesh=mesh)


def compile_step(program: PretrainingProgram, phase: Phase) -> CompiledStep:
    """Compile the step of `phase`.

    Raises:
      DoesNotFit: if the step needs more memory than a chip has.
    """
    special = dataclasses.replace(_IDS, vocab_size=program.config.model.vocab_size)
    step: Any = program.train_step(phase, special=special)
    sharding = meshes.batch_sharding(program.mesh)
    batch, length = phase.batch_size, phase.max_seq_length
    instances = instances_per_row(program.config.data, max_seq_length=length)

    def rows(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding)

    host_batch = Rows(
        input_ids=rows((length,), jnp.int32),
        segment_lengths=rows((instances, 2), jnp.int32),
        next_sentence_labels=rows((instances,), jnp.int32),
        word_starts=rows((length,), jnp.bool_),
    )
    with meshes.use_mesh(program.mesh, rules=program.rules):
        return compile_lowered(step.lower(program.abstract_step_state(), host_batch))


def compile_lowered(
    lowered: jax.stages.Lowered, *, options: Mapping[str, CompilerOption] | None = None
) -> CompiledStep:
    """Compile a step that was lowered for a slice, with `options` besides those of its `jax.jit`.

    Raises:
      DoesNotFit: if the step needs more memory than a chip has.
    """
    folder = fresh_schedules()
    merged: dict[str, Any] = {**_dump_options(folder), **(options or {})}
    try:
        compiled: Any = lowered.compile(compiler_options=merged)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        raise DoesNotFit(_needed_bytes(str(error))) from error
    memory = compiled.memory_analysis()
    return CompiledStep(
        hlo=_text(compiled, folder=folder),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        schedules=folder,
    )


def _dump_options(folder: Path | None) -> dict[str, Any]:
    """Return compiler options that write the program to `folder`."""
    if folder is None:
        return {}
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": ""}


def _text(compiled: Any, *, folder: Path | None) -> str:
    """Return the optimized program: as dumped, since jaxlib 0.10.2 cannot read some of v5p, v6e and TPU7x back.

    It then prints a stack trace besides raising the error.
    """
    dumps = sorted(folder.glob("*.after_codegen.txt")) if folder else []
    return dumps[-1].read_text(encoding="utf-8") if dumps else compiled.as_text()


def _needed_bytes(message: str) -> int | None:
    """Return the needed bytes from an error such as "Used 20.51G of 15.75G hbm"."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return int(float(match.group(1)) * 2 ** (10 * (" KMGT".index(match.group(2))))) if match else None
