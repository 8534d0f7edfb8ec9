"""A pre-training run, from start-up to the final messages.

1. Program: mesh, state shardings, steps.
2. Workdir: create it, or check that it belongs to this config.
3. Data: open or build the data set of each phase's length; a new run takes from it what its config leaves open.
4. State: the newest good checkpoint of the workdir, into which that of --continue_from is copied; else the model of
   --init, else random initialization.
5. Loop: evaluate, save, step, log.
6. Summary: goodput, and the comparison with the unigram model.
"""

import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_jax.config import Config
from bert_jax.config.task_options import HOLD_OUT
from bert_jax.convert.loading import PretrainedModel, initial_params, load_pretrained
from bert_jax.convert.pruned_layers import with_layers
from bert_jax.errors import UserError
from bert_jax.invocation import command as command_line
from bert_jax.invocation import next_steps, resumes, shown
from bert_jax.locations import is_bucket
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.distributed import Hosts
from bert_jax.pretrain.continuing import (
    EarlierRun,
    adopt_run,
    adopt_source,
    as_resumed,
    copy_state,
    save_vocabulary_of,
)
from bert_jax.pretrain.dataset import OpenData, open_data
from bert_jax.pretrain.job import PretrainingJob
from bert_jax.pretrain.method import SAME_RUN, Method
from bert_jax.pretrain.open_values import as_begun, preliminary, settled
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.pretrain.proportions import describe_epochs, describe_unseen, warnings
from bert_jax.runs.bucket_workdir import BucketWorkdir, opened, require_dataset
from bert_jax.runs.goodput import Goodput
from bert_jax.runs.runtime import FINISHED, Runtime, silent
from bert_jax.runs.session import Session, SessionOptions
from bert_jax.runs.start_up import check_command, open_runtime
from bert_jax.runs.workdir import CONFIG, SameRun, save_config

# In a bucket, each host has its own copy of the vocabulary of --init; fingerprints are compared.
_FREE_IN_BUCKET = "data.vocab"
_OWN = ("data.directory", "data.num_workers")  # may differ between hosts: each may have the data on its own disk


def pretrain(
    config: Config,
    *,
    workdir: str | Path,
    command: str = "",
    init: str = "",
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    init_layers: Sequence[str] = (),
    continue_from: str = "",
    hosts: Hosts | None = None,
    started_at: float | None = None,
    method: Method | None = None,
) -> int:
    """Train to the end of the schedule, or resume there; return the exit status.

    Args:
      config: the run.
      workdir: its folder, on a disk that all hosts see or in a bucket.
      command: what to type to resume, "" if that is not a command.
      init: the path of a model to start from; it determines shape and vocabulary.
      init_missing: parts to initialize randomly if that model lacks them.
      drop: parts or tensors of that model to ignore.
      init_layers: numbers of its layers to keep; empty: all.
      continue_from: a workdir or checkpoint of a run whose state, optimizer and step included, a new run starts from.
      hosts: all hosts of the run; every one of them calls this function.
      started_at: when the process started, in seconds since the epoch.
      method: what is trained; None: pre-training from text alone.

    Raises:
      UserError: for anything the user can fix.
    """
    hosts, method = hosts or Hosts(), method or Method()
    report = print if hosts.is_main else silent
    if init and continue_from:
        raise UserError("--init and --continue_from are both set: --init starts from parameters, type one of them")
    run = functools.partial(
        _pretrain,
        config,
        command=command,
        init=init,
        init_missing=init_missing,
        drop=drop,
        init_layers=init_layers,
        continue_from=continue_from,
        hosts=hosts,
        started_at=started_at,
        method=method,
        report=report,
    )
    if not is_bucket(workdir):
        return run(workdir=workdir, bucket=None)
    if continue_from:
        raise UserError(
            f"--continue_from needs a --workdir on a disk, not {workdir}: to start from the parameters alone, type "
            f"--init={continue_from}"
        )
    with opened(os.fspath(workdir), hosts=hosts, report=report) as bucket:
        return run(workdir=bucket.path, bucket=bucket)


def _pretrain(
    config: Config,
    *,
    workdir: str | Path,
    bucket: BucketWorkdir | None,
    command: str,
    init: str,
    init_missing: Sequence[str],
    drop: Sequence[str],
    init_layers: Sequence[str],
    continue_from: str,
    hosts: Hosts,
    started_at: float | None,
    method: Method,
    report: Callable[[str], None],
) -> int:
    folder = Path(workdir)
    has_begun = _has_begun(folder, hosts=hosts)
    config, earlier = continued(config, workdir=folder, path=continue_from, has_begun=has_begun, report=report)
    if bucket is not None:
        require_dataset(config.data.directory)
    source = load_source(init, init_missing=init_missing, drop=drop, layers=init_layers, report=report)
    config = adopted(config, workdir=workdir, source=source, method=method, report=report)
    params = None if source is None else initial_params(source, model=config.model, init_missing=init_missing)
    own = _OWN if bucket is None else (*_OWN, _FREE_IN_BUCKET)
    check_command(config, params=params, hosts=hosts, own=own, others=method.facts)
    _report_kernels(config, report=report)
    first = as_begun(config, workdir=workdir) if has_begun else preliminary(config)
    program = method.program(first, mesh=meshes.make_mesh(first.mesh))
    runtime = open_runtime(
        first,
        workdir=workdir,
        same_run=method.same_run if bucket is None else _in_bucket(method.same_run),
        hosts=hosts,
        prepare=functools.partial(_prepare, source=source, method=method),
        command=command,
        started_at=started_at,
        bucket=bucket,
    )
    try:
        data = _open_data(config, runtime=runtime, has_begun=has_begun)
        if not has_begun:
            program = _settle(program, settled(config, infos=data.infos), method=method, runtime=runtime)
            _copy_state(earlier, data=data, runtime=runtime)
        _report_program(program, data, report=report)
        job = method.job(program, data=data, runtime=runtime, params=params, trained=_trained(source))
        del source, params  # else the weights would stay in host memory for the whole run
        return _train(job, runtime=runtime)
    finally:
        runtime.close()


def _in_bucket(same_run: SameRun) -> SameRun:
    return dataclasses.replace(same_run, free=re.compile(rf"{same_run.free.pattern}|{re.escape(_FREE_IN_BUCKET)}"))


def continued(
    config: Config, *, workdir: Path, path: str, has_begun: bool, report: Callable[[str], None]
) -> tuple[Config, EarlierRun | None]:
    """Return the config of a run that resumes in `workdir` or continues the one at `path`, and the latter."""
    if has_begun and (workdir / CONFIG).exists():
        return as_resumed(config, workdir=workdir, with_shape=bool(path)), None
    return adopt_run(config, path=path, report=report) if path else (config, None)


def adopted(
    config: Config,
    *,
    workdir: str | Path,
    source: PretrainedModel | None,
    method: Method,
    report: Callable[[str], None],
) -> Config:
    """Return `config` with what the model of --init and the method determine of it."""
    if source is not None:
        config = adopt_source(config, source=source, workdir=workdir, report=report)
    return method.adopted(config, workdir=workdir, source=source, report=report)


def _trained(source: PretrainedModel | None) -> tuple[str, ...]:
    """Return the parts of the --init model that are not random."""
    return () if source is None else source.trained_parts


def _report_kernels(config: Config, *, report: Callable[[str], None]) -> None:
    for line in kernel_notices(dtype=config.model.dtype, implementation=config.model.attention_implementation):
        report(line)


def load_source(
    init: str,
    *,
    init_missing: Sequence[str],
    drop: Sequence[str],
    layers: Sequence[str],
    report: Callable[[str], None] = print,
) -> PretrainedModel | None:
    """Return the model of --init, None without one."""
    if not init:
        return None
    source = load_pretrained(init, init_missing=init_missing, drop=drop, exact=False, report=report)
    return with_layers(source, layers=layers) if layers else source


def _has_begun(workdir: Path, *, hosts: Hosts) -> bool:
    """Return whether host 0 finds results of a run: other hosts may see its files later."""
    return bool(hosts.exchange("run has begun", "yes" if SAME_RUN.has_begun(workdir) else "")[0])


def _prepare(workdir: Path, *, source: PretrainedModel | None, method: Method) -> None:
    method.prepare(workdir)
    if source is not None:
        save_vocabulary_of(source, workdir=workdir)


def _copy_state(earlier: EarlierRun | None, *, data: OpenData, runtime: Runtime) -> None:
    """Copy the state that the run continues. From then on it has begun, so this comes after all that can be wrong."""
    if earlier is None:
        return
    earlier.check_data(data.fingerprints)
    with runtime.hosts.main_first("state of the earlier run"):
        if runtime.hosts.is_main:
            copy_state(earlier, workdir=runtime.path)


def _report_program(program: PretrainingProgram, data: OpenData, *, report: Callable[[str], None]) -> None:
    epochs = describe_epochs(program.phases, infos=data.infos)
    for line in [
        *program.compiler_options.lines(),
        *epochs,
        *warnings(program.config, phases=program.phases, infos=data.infos),
    ]:
        report(line)


def _open_data(config: Config, *, runtime: Runtime, has_begun: bool) -> OpenData:
    """Open or build the data set of what the user asked for: open values are part of its identity."""
    lengths = tuple(sorted({phase.max_seq_length for phase in config.train.phases}))
    return open_data(
        config,
        workdir=runtime.path,
        max_seq_lengths=lengths,
        hosts=runtime.hosts,
        report=runtime.report,
        keep_vocabulary=has_begun,
    )


def _settle(program: PretrainingProgram, config: Config, *, method: Method, runtime: Runtime) -> PretrainingProgram:
    """Return the program of `config`, and save that in the workdir, if the data changed what `program` began with."""
    if config == program.config:
        return program
    if runtime.hosts.is_main:
        save_config(runtime.path, config)
    return method.program(config, mesh=program.mesh)


def _train(job: PretrainingJob, *, runtime: Runtime) -> int:
    config, path, end = job.config, runtime.path, job.num_steps
    options = SessionOptions(config.checkpoint, config.log, config.profile.steps, config.train.max_nonfinite_steps)
    with Session(job, runtime=runtime, directory=path, options=options) as session, runtime.handling_signals():
        start = session.start
        if start >= end:
            runtime.report(
                f"training has already finished: {end} steps, checkpoint in {runtime.shown}/checkpoints/{start}; "
                f"for more, {'--continue_from it' if config.train.num_epochs else 'set --config.train.num_steps'}"
            )
            return FINISHED
        finished = session.metadata.get("config", {}).get("train", {}).get("num_steps", end)
        if finished <= start:
            runtime.report(
                f"more steps after the end of a run of {finished}: the learning rate is now that of a run of {end} "
                f"steps, {job.learning_rate(start):.3g} at step {start}"
            )
        runtime.report(
            f"resuming at step {start} of {end}"
            if session.is_resumed
            else f"starting: {end} steps on {runtime.devices}"
        )
        ended = session.train()
        stopped_status = runtime.stopped_status()
    runtime.draw_page(path)  # with the last wall times
    runtime.report(_where_time_went(ended.goodput, runtime))
    if ended.step < end:
        runtime.report(f"stopped at step {ended.step} of {end}, checkpoint saved; {resumes(runtime.command)}")
        return stopped_status
    runtime.report(f"finished: {end} steps, checkpoint in {runtime.shown}/checkpoints/{end}")
    infos = {phase.max_seq_length: job.info(phase) for phase in job.program.phases}
    unseen = describe_unseen(config, phases=job.program.phases, infos=infos, workdir=_typed(runtime.shown))
    for line in [*job.conclusions(), *unseen]:
        runtime.report(line)
    runtime.report_missing_page()
    runtime.report(_next_steps(runtime.shown, fills_masks=job.fills_masks))
    return FINISHED


def _next_steps(workdir: Path | str, *, fills_masks: bool) -> str:
    model = _typed(workdir)
    fill = command_line("predict", f"--model={model} --task=fill_mask --text='A text with a [MASK] in it.'")
    return next_steps(
        *([fill] if fills_masks else []),
        command_line(
            "finetune",
            f"--config=configs/finetune_own.py:classification --init={model} --data_dir=FILE.csv {HOLD_OUT}",
        ),
        command_line("export", f"--checkpoint={model} --out=FOLDER"),
    )


def _typed(workdir: Path | str) -> str:
    return shown(workdir) if isinstance(workdir, Path) else workdir


def _where_time_went(goodput: Goodput, runtime: Runtime) -> str:
    """Return the line for a log, or on a terminal a short one: what it leaves out is in goodput.json and metrics."""
    is_terminal = sys.stdout.isatty()
    if is_terminal or goodput.first_step_after is None:
        return goodput.describe(briefly=is_terminal)
    programs = f"{runtime.cache.hits} of {runtime.cache.requests} programs from the compilation cache"
    return f"{goodput.describe()}; first step of this start after {goodput.first_step_after:.1f} s ({programs})"
