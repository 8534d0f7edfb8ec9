"""Distillation: pre-training in which a student learns the relations of a teacher's layer (MiniLMv2)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bert_jax.config import Config, from_saved
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.accents import with_accents
from bert_jax.data.tokenization import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.json_files import read_json
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.distributed import Hosts
from bert_jax.pretrain.continuing import VOCABULARY
from bert_jax.pretrain.dataset import OpenData
from bert_jax.pretrain.distillation_job import DistillationJob
from bert_jax.pretrain.distillation_program import DistillationProgram
from bert_jax.pretrain.dry_run import config_of_start, describe_run
from bert_jax.pretrain.method import SAME_RUN, Method
from bert_jax.pretrain.open_values import finished_infos
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.pretrain.run import load_source, pretrain
from bert_jax.pretrain.teacher import Teacher, load_teacher
from bert_jax.runs.runtime import Runtime, silent

TEACHER = "teacher.json"  # in the workdir


def distill(config: Config, *, teacher: str, workdir: str | Path, hosts: Hosts | None = None, **options: Any) -> int:
    """Distill to the end of the schedule, or resume there; return the exit status.

    `options` are further ones of `pretrain`.

    Raises:
      UserError: for anything the user can fix.
    """
    hosts = hosts or Hosts()
    method = open_method(config, teacher=teacher, report=print if hosts.is_main else silent)
    return pretrain(config, workdir=workdir, hosts=hosts, method=method, **options)


def describe(
    config: Config,
    *,
    teacher: str,
    workdir: str | Path,
    init: str = "",
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    init_layers: Sequence[str] = (),
) -> str:
    """Return the output of `--dry_run`; the arguments are those of `distill`.

    Raises:
      UserError: as the start does.
    """
    method = open_method(config, teacher=teacher, report=print)
    source = load_source(init, init_missing=init_missing, drop=drop, layers=init_layers)
    config = config_of_start(config, workdir=workdir, source=source, method=method)
    program = method.program(config, mesh=meshes.make_mesh(config.mesh))
    return describe_run(program, infos=finished_infos(config))


def open_method(config: Config, *, teacher: str, report: Callable[[str], None]) -> "Distillation":
    """Return the method with the teacher at the path `teacher`, which is loaded.

    Raises:
      UserError: if there is none, or it does not suit the config.
    """
    if config.distill is None:
        raise UserError(
            "config.distill is missing: type --config=configs/distill_minilm.py, or make a config file with "
            "default_config(distill=True)"
        )
    return Distillation(load_teacher(teacher, config=config, report=report))


def _read(record: Mapping[str, Any]) -> Config:
    config = from_saved(record)
    if config.distill is None:
        raise UserError("it has no teacher: resume it with `bert-jax train`")
    return config


@dataclasses.dataclass(frozen=True)
class Distillation(Method):
    """Pre-training with a teacher."""

    teacher: Teacher

    same_run = dataclasses.replace(SAME_RUN, command="distillation", read=_read, remedy="choose another --workdir")

    @property
    def facts(self) -> Mapping[str, str]:
        """Return the teacher's checksum."""
        return {"the weights of --teacher": self.teacher.checksum}

    def adopted(
        self,
        config: Config,
        *,
        workdir: str | Path,
        source: PretrainedModel | None,
        report: Callable[[str], None],
    ) -> Config:
        """Return `config` with the teacher's vocabulary, unless it has that already.

        Raises:
          UserError: if --init, the vocabulary or the data set of the config has another one.
        """
        teacher, data = self.teacher, config.data
        model = teacher.model
        report(
            f"learning from {teacher.path} ({model.architecture}, width {model.hidden_size}): the relations of layer "
            f"{model.num_hidden_layers}"
        )
        infos = finished_infos(config)
        for info in infos.values():
            self._check(info.vocabulary_fingerprint, of=f"the data set in {info.directory}")
        if source is not None:
            self._check(source.require_tokenizer().fingerprint, of=f"--init={source.path}")
        elif data.vocab:
            self._check(_tokenizer_of(config).fingerprint, of=f"config.data.vocab={data.vocab}")
        elif infos or data.directory:
            data = dataclasses.replace(data, do_lower_case=teacher.tokenizer.do_lower_case)
        else:
            vocab = str(Path(workdir).absolute() / VOCABULARY)
            data = dataclasses.replace(data, vocab=vocab, do_lower_case=teacher.tokenizer.do_lower_case)
        return dataclasses.replace(config, data=data)

    def prepare(self, workdir: Path) -> None:
        """Write the teacher's identity and its vocabulary.

        Raises:
          UserError: if the run in the workdir has another teacher.
        """
        file = workdir / TEACHER
        if self.same_run.has_begun(workdir) and file.is_file():
            self.teacher.check_same(read_json(file), where=f"the run in {workdir}")
            return
        write_json(file, self.teacher.record)
        self.teacher.tokenizer.save(workdir / VOCABULARY)

    def program(self, config: Config, *, mesh: Mesh) -> PretrainingProgram:
        """Return the program of the run."""
        return DistillationProgram(config, mesh=mesh, teacher=self.teacher.model)

    def job(
        self, program: PretrainingProgram, *, data: OpenData, runtime: Runtime, params: Any, trained: Sequence[str]
    ) -> DistillationJob:
        """Return the job of the run, with the teacher on the mesh."""
        assert isinstance(program, DistillationProgram)
        program.place_teacher(self.teacher.params)
        self.teacher.params.clear()  # else they would stay in host memory for the whole run
        return DistillationJob(
            program, data=data, runtime=runtime, params=params, trained=trained, teacher=self.teacher
        )

    def _check(self, fingerprint: str, *, of: str) -> None:
        expected = self.teacher.tokenizer.fingerprint
        if fingerprint != expected:
            raise UserError(
                f"{of} has another vocabulary (fingerprint {fingerprint[:12]}) than --teacher={self.teacher.path} "
                f"({expected[:12]}), which would read other tokens: use the teacher's, or give another teacher"
            )


def _tokenizer_of(config: Config) -> Tokenizer:
    """Return the tokenizer that the config names."""
    loaded = load_tokenizer(config.data.vocab, do_lower_case=config.data.do_lower_case)
    return with_accents(loaded, config.data.strip_accents)
