"""The finetune command: start-up, one experiment per task, GLUE's average and submission."""

import dataclasses
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config.finetuning import FinetuneConfig, config_of_task, from_saved
from bert_jax.config.task_options import TYPED_FIELDS
from bert_jax.convert.added_rows import with_added_tokens
from bert_jax.convert.loading import PretrainedModel, load_pretrained
from bert_jax.convert.lstm_pair import load_initial
from bert_jax.convert.pruned_layers import with_layers
from bert_jax.errors import UserError
from bert_jax.files import write_json
from bert_jax.finetuning import report
from bert_jax.finetuning.dry_run import describe_task
from bert_jax.finetuning.embed_settings import unused_prompts, with_model_settings
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.intermediate import intermediate_model
from bert_jax.finetuning.origin import has_runs
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.run_result import Stopped
from bert_jax.finetuning.settings import grid
from bert_jax.finetuning.task_data import missing_labels
from bert_jax.invocation import command as command_line
from bert_jax.invocation import next_steps, resumes, shown
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.parallel.compiler_options import compiler_options
from bert_jax.parallel.distributed import Hosts
from bert_jax.parallel.mesh import make_mesh
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
    # Fields that may change on resume: results do not depend on them. The data are compared by digest.
    free=re.compile(
        r"(mesh|log|profile|checkpoint|sweep)\..*|model\.(scan_layers|remat)|data\.directory|distill\.teacher"
        r"|train\.max_nonfinite_steps"
    ),
    has_begun=has_runs,
)

_NUMBERS = {"seeds": (1, 10_000), "errors": (0, 1 << 53), "ensemble": (0, 10_000)}


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of the finetune command other than the config."""

    init: str
    workdir: str
    sweep: bool = False
    seeds: int = 1
    errors: int = 0
    ensemble: int = 0
    predict_test: bool = False
    init_missing: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    dry_run: bool = False
    add_tokens: tuple[str, ...] = ()
    init_layers: tuple[str, ...] = ()
    command: str = ""


def finetune(
    config: FinetuneConfig, *, request: Request, hosts: Hosts | None = None, started_at: float | None = None
) -> int:
    """Fine-tune on the config's tasks, or resume, and return the exit status.

    All `hosts` call this function. `begun` is the start time of the process, in seconds since the Unix epoch.

    Raises:
      UserError: for anything the user can fix.
    """
    hosts = hosts or Hosts()
    for name, (least, most) in _NUMBERS.items():
        if not least <= getattr(request, name) <= most:
            raise UserError(f"--{name}={getattr(request, name)}: give at least {least} and at most {most}")
    if config.own:
        open_config_task(config_of_task(config, "own"))  # raises for an unknown kind before the model is read
    report = print if hosts.is_main else silent
    pretrained = load_initial(
        request.init, init_missing=request.init_missing, drop=request.drop, exact=False, report=report
    )
    pretrained.require_tokenizer()
    config = with_model_settings(config, pretrained=pretrained)
    if line := unused_prompts(config, pretrained=pretrained):
        report(line)
    if request.init_layers:
        pretrained = with_layers(pretrained, layers=request.init_layers)
    if request.add_tokens:
        pretrained = with_added_tokens(pretrained, tokens=request.add_tokens, report=report)
    if request.dry_run:
        _dry_run(config, pretrained=pretrained, request=request, report=report)
        return FINISHED
    check_command(config, params=pretrained.params, hosts=hosts, own=("data.directory",))
    for line in kernel_notices(dtype=config.model.dtype, implementation=pretrained.model.attention_implementation):
        report(line)
    for line in compiler_options(config.mesh.compiler_options, mesh=make_mesh(config.mesh)).lines():
        report(line)
    runtime = open_runtime(
        config, workdir=request.workdir, same_run=SAME_RUN, hosts=hosts, command=request.command, started_at=started_at
    )
    try:
        with runtime.handling_signals():
            try:
                _run_tasks(config, pretrained=pretrained, request=request, runtime=runtime)
            except Stopped as stop:
                position = f"step {stop.step} of {stop.num_steps}"
                report(f"stopped at {position}, state saved; {resumes(request.command)}")
                return runtime.stopped_status()
    finally:
        runtime.close()
    return FINISHED


def _dry_run(
    config: FinetuneConfig, *, pretrained: PretrainedModel, request: Request, report: Callable[[str], None]
) -> None:
    """Report what would be trained, task by task."""
    options = _options(config, request, report=report)
    for name in _tasks(config, report):
        of_task = config_of_task(config, name)
        task = open_config_task(of_task)
        for line in describe_task(of_task, task=task, pretrained=pretrained, options=options, report=report):
            report(line)


def _options(config: FinetuneConfig, request: Request, *, report: Callable[[str], None]) -> ExperimentOptions:
    path = config.distill.teacher
    return ExperimentOptions(
        runs=tuple(grid(config, sweep=request.sweep, seeds=request.seeds)),
        predict_test=request.predict_test,
        errors=request.errors,
        ensemble=request.ensemble,
        random_parts=request.init_missing,
        teacher=load_pretrained(path, exact=False, report=report) if path else None,
    )


def _run_tasks(config: FinetuneConfig, *, pretrained: PretrainedModel, request: Request, runtime: Runtime) -> None:
    workdir = runtime.path
    names = _tasks(config, runtime.report)
    single = len(names) == 1 and config.task == names[0]
    options = _options(config, request, report=runtime.report)
    if not single:
        _check_files(config, names, options)
    records: dict[str, Any] = {}
    for name in names:
        task = open_config_task(config_of_task(config, name))
        directory = workdir if single else workdir / name
        directory.mkdir(parents=True, exist_ok=True)
        records[name] = _run_task(
            config, task=task, pretrained=pretrained, directory=directory, options=options, runtime=runtime
        )
        if not config.features:  # which saves no model
            runtime.report(_next_steps(directory, task=_prediction_task(config, task)))
    if not runtime.hosts.is_main:
        return
    if not single:
        _finish_benchmark(workdir, records, runtime.report)
        runtime.draw_page(workdir)
    if request.predict_test and all(name in glue.TASKS for name in names):
        prefix = "ensemble-" if request.ensemble else ""
        _write_submission(workdir, names, single=single, prefix=prefix, say=runtime.report)


def _next_steps(directory: Path, *, task: str) -> str:
    model = shown(directory)
    rows = "".join(f" --text='{field.upper()}'" for field in TYPED_FIELDS.get(task, ())) or " --input=FILE"
    return next_steps(
        command_line("predict", f"--model={model} --task={task}{rows}"),
        command_line("export", f"--checkpoint={model} --out=FOLDER"),
    )


def _prediction_task(config: FinetuneConfig, task: Task) -> str:
    """Return the predict command's task for rows like those of `task`."""
    pairs = glue.TASKS[task.name].text_pair if task.name in glue.TASKS else config.own and config.own.text_pair
    names = task.kind.prediction_tasks
    return "pair" if pairs and "pair" in names else names[0]


def _run_task(
    config: FinetuneConfig,
    *,
    task: Task,
    pretrained: PretrainedModel,
    directory: Path,
    options: ExperimentOptions,
    runtime: Runtime,
) -> dict[str, Any]:
    config = config_of_task(config, task.name)
    if config.intermediate_file and isinstance(task, SpanTask):
        pretrained = intermediate_model(
            config,
            task=task,
            pretrained=pretrained,
            directory=directory,
            random_parts=options.random_parts,
            runtime=runtime,
        )
        options = dataclasses.replace(options, random_parts=())  # the second stage continues from the first's head
    return Experiment(
        config, task=task, pretrained=pretrained, options=options, runtime=runtime, directory=directory
    ).run_all()


def open_config_task(config: FinetuneConfig) -> Task:
    """Return the task that the config describes."""
    groups: dict[str, Any] = {name: getattr(config, name) for name in ("squad", "ner", "own", "embed", "rerank")}
    return open_task(config.task, data=config.data, **groups)


def _tasks(config: FinetuneConfig, say: Callable[[str], None]) -> list[str]:
    """Return the names of the tasks to run. "all" means the GLUE tasks whose train file exists.

    AX has no train set; MNLI's model predicts it.

    Raises:
      UserError: for AX by itself, or if "all" has no task with a train file.
    """
    if config.task != "all":
        names = config.task.split(",")
        if "ax" in names:
            raise UserError(
                "config.task: ax has no train set, so the model of mnli predicts it: put AX's file into the folder AX "
                "next to MNLI, and type --task=mnli --predict_test"
            )
        return names
    root = Path(config.data.directory)
    trainable = [name for name in glue.TASKS if name != "ax"]
    available = [name for name in trainable if config.data.directory.startswith("tfds:") or _has_train(root, name)]
    if not available:
        raise UserError(
            f"--data_dir={root}: contains none of GLUE's folders ({', '.join(_folders(trainable))}): give their parent "
            "folder"
        )
    missing = [name for name in trainable if name not in available]
    if missing:
        say(f"skipped, because they have no train file in {root}: {', '.join(_folders(missing))}")
    return available


def _check_files(config: FinetuneConfig, names: Sequence[str], options: ExperimentOptions) -> None:
    """Read the files of all tasks before the first is trained, so that an error in the last one shows immediately.

    Raises:
      UserError: for the first file that is missing or wrong.
    """
    for name in names:
        task = open_config_task(config_of_task(config, name))
        labeled = ("train", *task.eval_splits())
        for split in (*labeled, *(task.test_splits() if options.predict_test else ())):
            if split == "dev" and config.data.dev_fraction:
                continue
            examples = task.read(split)
            if split in labeled and any(getattr(example, "label", True) is None for example in examples):
                raise missing_labels(task, split)


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
            f"average of {len(average['numbers'])} of the paper's {average['of']} scores: "
            f"{100 * average['average']:.1f} ({', '.join(f'{k} {100 * v:.1f}' for k, v in average['numbers'].items())})"
        )


def _write_submission(
    workdir: Path, names: Sequence[str], *, single: bool, prefix: str, say: Callable[[str], None]
) -> None:
    """Zip the test predictions, and report which of the eleven files that the server expects are missing.

    `prefix` is that of the folders of predictions: empty for the best run, or the ensemble's.
    """
    files: dict[str, Path] = {}
    for name in names:
        folder = (workdir if single else workdir / name) / "predictions"
        for split, file in glue.submission(name).items():
            path = folder / f"{prefix}{split}" / f"{file}.tsv"
            if path.is_file():
                files[path.name] = path
    target = workdir / "glue_submission.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, path in sorted(files.items()):
            archive.write(path, file)
    expected = [f"{file}.tsv" for spec in glue.TASKS.values() for file in spec.submission]
    missing = [file for file in expected if file not in files]
    say(
        f"{target}: {', '.join(sorted(files))}" + (f"; the server also expects {', '.join(missing)}" if missing else "")
    )
