"""Fine-tune: the start-up in its order, one experiment a task, the benchmark's average and submission."""

import dataclasses
import signal
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.config.finetuning import FinetuneConfig, flatten, from_config_dict, to_json
from bert_jax.convert.source import Source, load_source
from bert_jax.errors import UserError
from bert_jax.files import load_json, write_json, write_text
from bert_jax.finetuning import report
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.intermediate import intermediate_source
from bert_jax.finetuning.origin import has_runs
from bert_jax.finetuning.results import Wanted, no_labels
from bert_jax.finetuning.run import Stopped
from bert_jax.finetuning.settings import grid
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.stopping import StopRequest
from bert_jax.tasks import glue
from bert_jax.tasks.interface import Task
from bert_jax.tasks.ner import TagTask
from bert_jax.tasks.registry import open_task

# Exit statuses, as those of pre-training: a launcher restarts on PREEMPTED; 130 is the shell's for Ctrl-C.
FINISHED, PREEMPTED, INTERRUPTED = 0, 75, 130

# What may differ between two starts in one workdir: results do not depend on it (of the data, its digest is compared).
_FREE = ("mesh.", "log.", "checkpoint.", "sweep.", "model.scan_layers", "model.remat", "data.directory")


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


def finetune(config: FinetuneConfig, *, request: Request) -> int:
    """Fine-tune on the config's tasks, or go on where it stopped; return the exit status.

    Raises:
      UserError: for anything the user can mend.
    """
    say: Callable[[str], None] = print if jax.process_index() == 0 else lambda text: None
    for name, least in (("seeds", 1), ("errors", 0), ("ensemble", 0)):
        if getattr(request, name) < least:
            raise UserError(f"--{name}={getattr(request, name)}: give at least {least}")
    workdir = open_workdir(request.workdir, config=config)
    source = load_source(request.init, report=say)
    source.require_tokenizer()
    names = _tasks(config, say)
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
    cache = CompilationCache(workdir)
    with StopRequest() as stop:
        try:
            for name in names:
                task = open_config_task(dataclasses.replace(config, task=name))
                directory = workdir if single else workdir / name
                directory.mkdir(parents=True, exist_ok=True)
                records[name] = _run_task(config, task, source, directory, wanted, stop, say)
        except Stopped as stopped:
            where = (
                "state saved; {} goes on there" if stopped.saved else "finished runs are kept; {} begins this one anew"
            )
            say(f"stopped at step {stopped.step} of {stopped.num_steps}, {where.format(request.command)}")
            return PREEMPTED if stop.received == signal.SIGTERM else INTERRUPTED
        finally:
            cache.close()
    if not single:
        _finish_benchmark(workdir, records, say)
    if request.predict_test and all(name in glue.TASKS for name in names):
        _write_submission(workdir, names, single=single, prefix="ensemble-" if request.ensemble else "", say=say)
    return FINISHED


def _run_task(
    config: FinetuneConfig,
    task: Task,
    source: Source,
    directory: Path,
    wanted: Wanted,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, Any]:
    if config.ner.features and isinstance(task, TagTask):
        from bert_jax.finetuning.feature_based import run_feature_based

        return run_feature_based(
            config, task=task, source=source, workdir=directory, wanted=wanted, should_stop=stop, say=say
        )
    config = dataclasses.replace(config, task=task.name)
    if config.squad.intermediate_file and task.kind == "span":
        source = intermediate_source(
            config, task=task, source=source, workdir=directory, fresh=wanted.fresh_parts, should_stop=stop, say=say
        )
        wanted = dataclasses.replace(wanted, fresh_parts=())  # the second stage goes on from the first's head
    experiment = Experiment(
        config, task=task, source=source, workdir=directory, wanted=wanted, should_stop=stop, say=say
    )
    return experiment.run_all()


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
        task = open_config_task(dataclasses.replace(config, task=name))
        labelled = ("train", *task.eval_splits())
        for split in (*labelled, *(task.test_splits() if wanted.predict_test else ())):
            if split == "dev" and config.data.dev_fraction:
                continue
            examples = task.read(split)
            if split in labelled and any(getattr(example, "label", True) is None for example in examples):
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


def open_workdir(workdir: str, *, config: FinetuneConfig) -> Path:
    """Create the workdir and write config.json, or check that the one there asks for the same.

    Where no run has begun yet, the config there binds nobody: a mistake in it or in the data can be mended.

    Raises:
      UserError: if it cannot be written, or belongs to another config; the line names fields and both values.
    """
    path = Path(workdir).absolute()
    file = path / "config.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if file.exists() and has_runs(path):
            _check_same(path, config)
        write_text(file, to_json(config))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--workdir={workdir}: cannot be written ({reason}): choose another directory") from error
    return path


def _check_same(path: Path, config: FinetuneConfig) -> None:
    try:
        before = flatten(from_config_dict(load_json(path / "config.json")))
    except (ValueError, UserError) as error:
        raise UserError(f"--workdir={path} belongs to something else than fine-tuning: choose another") from error
    now = flatten(config)
    names = [name for name in now if before[name] != now[name] and not name.startswith(_FREE)]
    if names:
        shown = "; ".join(f"config.{name} was {before[name]!r}, is {now[name]!r}" for name in names[:3])
        raise UserError(
            f"--workdir={path} belongs to a run with another config ({shown}): choose another --workdir, or give the "
            "old values to go on"
        )
