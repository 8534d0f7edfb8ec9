"""Compile the step that `train` runs, for a slice of TPUs that is not there."""

import atexit
import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from bert_jax.config import Config, instances_per_row
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.planning.topology import Topology
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.training.schedule import Phase
from bert_jax.types import Rows

# What libtpu asks a metadata server for on a TPU VM; without these it prints pages of warnings first.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans may run side by side
}
_IDS = SpecialIds(cls_id=101, sep_id=102, mask_id=103, pad_id=0, vocab_size=0)  # which ids they are makes no difference


_SCHEDULES: list[Path] = []  # where the compiler writes schedules: read once, when it is loaded


def prepare_environment() -> None:
    """Make ready to compile without TPUs; before jax's first use. JAX itself computes on the CPU meanwhile."""
    if _SCHEDULES:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what `_text` catches is logged with a trace
    jax.config.update("jax_platforms", "cpu")  # jax reads its variable when it is imported, which is past
    folder = Path(tempfile.mkdtemp(prefix="bert_jax_plan_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _SCHEDULES.append(folder)
    asked = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {asked}".strip()


def fresh_schedules() -> Path | None:
    """Empty the folder into which the compiler writes the schedules of the next program, and return it."""
    folder = _SCHEDULES[0] if _SCHEDULES else None
    for item in folder.iterdir() if folder else ():
        shutil.rmtree(item) if item.is_dir() else item.unlink()
    return folder


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Hold the optimized program of one phase's step, and its memory: bytes of one chip."""

    hlo: str
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int  # without what takes the place of arguments
    code_bytes: int
    schedules: Path | None = None  # of its kernels, until the next program is compiled

    @property
    def total_bytes(self) -> int:
        """Return what must fit."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes


class DoesNotFit(Exception):
    """Say that a step needs more memory than a chip has."""

    def __init__(self, needed_bytes: int | None):
        """Hold what the compiler says is needed, if it says so."""
        super().__init__(f"needs {needed_bytes} bytes")
        self.needed_bytes = needed_bytes


def make_program(config: Config, *, topology: Topology) -> PretrainingProgram:
    """Return the program of `config` on the slice, laid out as `train` would.

    Raises:
      UserError: if the TPU compiler is not installed, does not know the slice, or the config does not divide over it.
    """
    # A v4's two cores are one device, as on a TPU VM, only by this name; v5p's always are, the others have one.
    asked: dict[str, Any] = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if topology.slices > 1:
        asked["num_slices"] = topology.slices
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **asked)
    except Exception as error:
        if "libtpu" in str(error) or "TPU backend" in str(error):
            raise UserError("the TPU compiler is not installed: pip install -e '.[plan]'") from error
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"--topology={topology.name}: the TPU compiler knows no such slice ({reason})") from error
    mesh = meshes.make_mesh(config.mesh, devices=description.devices)
    return PretrainingProgram(config, mesh=mesh)


def compile_step(program: PretrainingProgram, phase: Phase) -> CompiledStep:
    """Compile the step of `phase`.

    Raises:
      DoesNotFit: if the compiler runs out of a chip's memory.
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
        return compile_lowered(step.lower(program.abstract_state(), host_batch))


def compile_lowered(lowered: jax.stages.Lowered) -> CompiledStep:
    """Compile any step that has been lowered for a slice.

    Raises:
      DoesNotFit: if the compiler runs out of a chip's memory.
    """
    folder = fresh_schedules()
    try:
        compiled: Any = lowered.compile(compiler_options=_dump_options(folder))
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
    """Return the options that also write the program into `folder`."""
    if folder is None:
        return {}
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": ""}


def _text(compiled: Any, *, folder: Path | None) -> str:
    """Return the optimized program; jaxlib 0.10.2 cannot read all of v5p's back, so then from what was written."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        written = sorted(folder.glob("*.after_codegen.txt")) if folder else []
        if not written:
            raise
        return written[-1].read_text(encoding="utf-8")


def _needed_bytes(message: str) -> int | None:
    """Return the bytes of "Used 20.51G of 15.75G hbm"."""
    match = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    return int(float(match.group(1)) * 2 ** (10 * (" KMGT".index(match.group(2))))) if match else None
