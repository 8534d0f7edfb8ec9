"""Fine-tune: the start-up in its order, one experiment a task, the benchmark's average and submission."""

import dataclasses
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config.finetuning import FinetuneConfig, config_of_task, from_saved
from bert_jax.convert.loading import PretrainedModel, load_pretrained
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.finetuning import report
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.intermediate import intermediate_source
from bert_jax.finetuning.origin import has_runs
from bert_jax.finetuning.results import Wanted
from bert_jax.finetuning.run_result import Stopped
from bert_jax.finetuning.settings import grid
from bert_jax.finetuning.task_data import no_labels
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.runtime import FINISHED, Runtime, silent
from bert_jax.runs.start_up import check_command, open_runtime
from bert_jax.runs.workdir import SameRun
from bert_jax.tasks import glue
from bert_jax.tasks.interface import Task
from bert_jax.tasks.registry import open_task
from bert_jax.tasks.squad import SpanTask

SAME_RUN = SameRun(
    command="fine-tuning",
    read=from_saved,
    # Results do not depend on it; of the data, the digest is compared.
    free=re.compile(
        r"(mesh|log|profile|checkpoint|sweep)\..*|model\.(scan_layers|remat)|data\.directory|train\.max_nonfinite_steps"
    ),
    has_begun=has_runs,
)


@dataclasses.dataclass(frozen=True)
class Request:
    """Hold what the flags of the door say beside the config."""

    init: str
    workdir: str
    sweep: bool = False
    seeds: int = 1
    errors: int = 0
    ensemble: int = 0
    predict_test: bool = False
    init_missing: tuple[str, ...] = ()
    command: str = "the same command"


def finetune(
    config: FinetuneConfig, *, request: Request, hosts: Hosts | None = None, begun: float | None = None
) -> int:
    """Fine-tune on the config's tasks, or resume where it stopped; return the exit status.

    Every one of several `hosts` calls this; `begun` is when the process began, in seconds since the epoch.

    Raises:
      UserError: for anything the user can fix.
    """
    hosts = hosts or Hosts()
    for name, least in (("seeds", 1), ("errors", 0), ("ensemble", 0)):
        if getattr(request, name) < least:
            raise UserError(f"--{name}={getattr(request, name)}: give at least {least}")
    if config.own:
        open_config_task(config_of_task(config, "own"))  # complains of an unknown kind before a model is read
    report = print if hosts.is_main else silent
    source = load_pretrained(request.init, report=report)
    source.require_tokenizer()
    check_command(config, params=source.params, hosts=hosts, own=("data.directory",))
    for line in kernel_notices(dtype=config.model.dtype, implementation=source.model.attention_implementation):
        report(line)
    runtime = open_runtime(
        config, workdir=request.workdir, same_run=SAME_RUN, hosts=hosts, command=request.command, begun=begun
    )
    try:
        with runtime.heeding_signals():
            try:
                _run_tasks(config, source=source, request=request, runtime=runtime)
            except Stopped as stopped:
                where = f"step {stopped.step} of {stopped.num_steps}"
                report(f"stopped at {where}, state saved; {request.command} resumes there")
                return runtime.stopped_status()
    finally:
        runtime.close()
    return FINISHED


def _run_tasks(config: FinetuneConfig, *, source: PretrainedModel, request: Request, runtime: Runtime) -> None:
    workdir = runtime.path
    names = _tasks(config, runtime.report)
    single = len(names) == 1 and config.task == names[0]
    wanted = Wanted(
        runs=tuple(grid(config, sweep=request.sweep, seeds=request.seeds)),
        predict_test=request.predict_test,
        errors=request.errors,
        ensemble=request.ensemble,
        fresh_parts=request.init_missing,
    )
    if not single:
        _check_files(config, names, wanted)
    records: dict[str, Any] = {}
    for name in names:
        task = open_config_task(config_of_task(config, name))
        directory = workdir if single else workdir / name
        directory.mkdir(parents=True, exist_ok=True)
        records[name] = _run_task(config, task=task, source=source, directory=directory, wanted=wanted, runtime=runtime)
    if not runtime.hosts.is_main:
        return
    if not single:
        _finish_benchmark(workdir, records, runtime.report)
    if request.predict_test and all(name in glue.TASKS for name in names):
        prefix = "ensemble-" if request.ensemble else ""
        _write_submission(workdir, names, single=single, prefix=prefix, say=runtime.report)


def _run_task(
    config: FinetuneConfig,
    *,
    task: Task,
    source: PretrainedModel,
    directory: Path,
    wanted: Wanted,
    runtime: Runtime,
) -> dict[str, Any]:
    config = config_of_task(config, task.name)
    if config.intermediate_file and isinstance(task, SpanTask):
        source = intermediate_source(
            config, task=task, source=source, directory=directory, fresh=wanted.fresh_parts, runtime=runtime
        )
        wanted = dataclasses.replace(wanted, fresh_parts=())  # the second stage continues from the first's head
    return Experiment(config, task=task, source=source, wanted=wanted, runtime=runtime, directory=directory).run_all()


def open_config_task(config: FinetuneConfig) -> Task:
    """Return the task that the config describes."""
    return open_task(config.task, data=config.data, squad=config.squad, ner=config.ner, own=config.own)


def _tasks(config: FinetuneConfig, say: Callable[[str], None]) -> list[str]:
    """Return the tasks to run; of "all" those whose train file is there (AX has none: MNLI's model answers it).

    Raises:
      UserError: for AX by itself, or if "all" finds no task.
    """
    if config.task != "all":
        names = config.task.split(",")
        if "ax" in names:
            raise UserError(
                "config.task: ax has no train set, the model of mnli answers it: type --task=mnli --predict_test, with "
                "AX's file in the folder AX beside MNLI"
            )
        return names
    root = Path(config.data.directory)
    trainable = [name for name in glue.TASKS if name != "ax"]
    there = [name for name in trainable if config.data.directory.startswith("tfds:") or _has_train(root, name)]
    if not there:
        raise UserError(f"--data_dir={root}: holds none of GLUE's folders ({', '.join(_folders(trainable))})")
    missing = [name for name in trainable if name not in there]
    if missing:
        say(f"left out, no train file in {root}: {', '.join(_folders(missing))}")
    return there


def _check_files(config: FinetuneConfig, names: Sequence[str], wanted: Wanted) -> None:
    """Read all tasks' files before the first is trained: what is wrong with the last one shows at once.

    Raises:
      UserError: for the first file that is missing or wrong.
    """
    for name in names:
        task = open_config_task(config_of_task(config, name))
        labeled = ("train", *task.eval_splits())
        for split in (*labeled, *(task.test_splits() if wanted.predict_test else ())):
            if split == "dev" and config.data.dev_fraction:
                continue
            examples = task.read(split)
            if split in labeled and any(getattr(example, "label", True) is None for example in examples):
                raise no_labels(task, split)


def _folders(names: Sequence[str]) -> list[str]:
    return [glue.TASKS[name].directory for name in names]


def _has_train(root: Path, name: str) -> bool:
    spec = glue.TASKS[name]
    return any((root / spec.directory / file).is_file() for file in spec.files.get("train", ("train.tsv",)))


def _finish_benchmark(workdir: Path, records: dict[str, Any], say: Callable[[str], None]) -> None:
    average = report.glue_average(records)
    summary = {name: record["best"]["metrics"] for name, record in records.items()}
    write_json(workdir / "results.json", {"tasks": summary, "glue": average})
    if average["numbers"]:
        say(
            f"average of {len(average['numbers'])} of the paper's {average['of']} numbers: "
            f"{100 * average['average']:.1f} ({', '.join(f'{k} {100 * v:.1f}' for k, v in average['numbers'].items())})"
        )


def _write_submission(
    workdir: Path, names: Sequence[str], *, single: bool, prefix: str, say: Callable[[str], None]
) -> None:
    """Zip the test predictions; the server wants all eleven files, so the ones that are missing are named.

    `prefix` is that of the folders: the best run's, or the ensemble's.
    """
    found: dict[str, Path] = {}
    for name in names:
        folder = (workdir if single else workdir / name) / "predictions"
        for split, file in glue.submission(name).items():
            path = folder / f"{prefix}{split}" / f"{file}.tsv"
            if path.is_file():
                found[path.name] = path
    target = workdir / "glue_submission.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, path in sorted(found.items()):
            archive.write(path, file)
    wanted = [f"{file}.tsv" for spec in glue.TASKS.values() for file in spec.submission]
    missing = [file for file in wanted if file not in found]
    say(f"{target}: {', '.join(sorted(found))}" + (f"; the server also wants {', '.join(missing)}" if missing else ""))
