"""How a model is pre-trained: from text alone, or as a student of a teacher (`pretrain/distillation.py`)."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bert_jax.config import Config, from_saved
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.pretrain.dataset import OpenData
from bert_jax.pretrain.job import PretrainingJob
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.runs.runtime import Runtime
from bert_jax.runs.workdir import SameRun, finished_with_fewer_steps


def _read(record: Mapping[str, Any]) -> Config:
    config = from_saved(record)
    if config.distill is not None:
        raise UserError("it is a distillation: resume it with `bert-jax distill`")
    return config


SAME_RUN = SameRun(
    command="pre-training",
    read=_read,
    # The data set's fingerprints are compared, and prepare refuses another input for it.
    free=re.compile(
        r"(mesh|log|profile|checkpoint|eval)\..*|data\.(num_workers|directory|input)"
        r"|model\.(scan_layers|remat|attention_implementation)|train\.(gradient_accumulation_steps|max_nonfinite_steps)"
    ),
    has_begun=lambda workdir: any((workdir / "checkpoints").glob("[0-9]*")),
    extends=finished_with_fewer_steps,
    remedy="choose another --workdir, with --continue_from={workdir} to start from the state of this run",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """Pre-training from text alone. A subclass changes what is trained, and what a run checks for it."""

    same_run = SAME_RUN

    @property
    def facts(self) -> Mapping[str, str]:
        """Return what all hosts must have besides the same config, by name."""
        return {}

    def adopted(
        self,
        config: Config,
        *,
        workdir: str | Path,
        source: PretrainedModel | None,
        report: Callable[[str], None],
    ) -> Config:
        """Return `config` with what the method determines of it; `source` is the model of --init, which it has.

        Raises:
          UserError: if config and method contradict each other.
        """
        del workdir, source, report
        if config.distill is not None:
            raise UserError(
                "config.distill is for a student of a teacher: type `bert-jax distill --teacher=MODEL` with this "
                "config, or leave config.distill out"
            )
        return config

    def prepare(self, workdir: Path) -> None:
        """Write what the method needs in the workdir. Called on host 0 only.

        Raises:
          UserError: if the workdir belongs to a run of another method.
        """
        del workdir

    def program(self, config: Config, *, mesh: Mesh) -> PretrainingProgram:
        """Return the program of the run."""
        return PretrainingProgram(config, mesh=mesh)

    def job(
        self, program: PretrainingProgram, *, data: OpenData, runtime: Runtime, params: Any, trained: Sequence[str]
    ) -> PretrainingJob:
        """Return the job of the run; `params` and `trained` are those of `PretrainingJob`."""
        return PretrainingJob(program, data=data, runtime=runtime, params=params, trained=trained)
