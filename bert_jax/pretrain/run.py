"""Pre-train: the start-up in its order, the loop, the closing words.

1. program: mesh, state shardings, steps;
2. workdir: create it, or check that it belongs to this config;
3. data: find or build the data set of each phase's length;
4. state: the newest good checkpoint of the workdir, else fresh parameters;
5. loop: evaluate, save, step, log;
6. say how far the model is from the unigram model.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.chips import peak_flops
from bert_jax.config import Config
from bert_jax.convert.continuing import adopt_source, perplexity_before_and_after
from bert_jax.convert.source import initial_params, load_source
from bert_jax.data.loader import PretrainingBatches
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.distributed import Hosts, check_alone_or_all
from bert_jax.pretrain.dataset import special_ids
from bert_jax.pretrain.evaluation import Evaluator, describe, verdict
from bert_jax.pretrain.program import Program
from bert_jax.runs.checkpoint import Checkpointer
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.goodput import Goodput
from bert_jax.runs.loop import run_loop
from bert_jax.runs.profiling import StepTracer
from bert_jax.runs.progress import Progress
from bert_jax.runs.start_up import Opened, check_command, open_run
from bert_jax.runs.step_log import StepLog
from bert_jax.runs.stopping import AgreedStop, StopRequest
from bert_jax.runs.writers import Writer, make_writers
from bert_jax.training.metrics import MetricWindow
from bert_jax.training.schedule import Phase, phase_at
from bert_jax.training.state import TrainState
from bert_jax.types import Rows

# Exit statuses: a launcher restarts on PREEMPTED (EX_TEMPFAIL of sysexits.h); 130 is the shell's for Ctrl-C.
FINISHED, PREEMPTED, INTERRUPTED = 0, 75, 130


def pretrain(
    config: Config,
    *,
    workdir: str | Path,
    command: str = "the same command",
    init: str = "",
    init_missing: Sequence[str] = (),
    hosts: Hosts | None = None,
    begun: float | None = None,
) -> int:
    """Train to the end of the schedule, or resume there; return the exit status.

    `command` is what the user is told to type to resume. `init` names a SOURCE to begin from, which gives shape and
    vocabulary; `init_missing` names parts to draw where it lacks them. Every one of several `hosts` calls this;
    `begun` is when the process began, in seconds since the epoch.

    Raises:
      UserError: for anything the user can mend.
    """
    begun = begun or time.time()
    hosts = hosts or Hosts()
    check_alone_or_all(hosts)
    report = print if hosts.is_main else _silent
    source = load_source(init, init_missing=init_missing, report=report) if init else None
    if source is not None:
        config = adopt_source(config, source=source, workdir=workdir, report=report)
    params = None if source is None else initial_params(source, model=config.model, init_missing=init_missing)
    check_command(config, params=params, hosts=hosts)
    program = Program(config, mesh=meshes.make_mesh(config.mesh))
    lengths = tuple(sorted({phase.max_seq_length for phase in program.phases}))
    opened = open_run(config, workdir=workdir, max_seq_lengths=lengths, source=source, hosts=hosts, report=report)
    cache = CompilationCache(opened.path)
    run = _Run(program, opened=opened, hosts=hosts, report=report, params=params, cache=cache, begun=begun)
    del source, params  # the weights would stay in the host's memory as long as the run
    checkpointer = Checkpointer(opened.path / "checkpoints", config=config.checkpoint, report=report, hosts=hosts)
    try:
        status = run.train(checkpointer, command=command)
        checkpointer.close()
        return status
    except BaseException:
        with contextlib.suppress(Exception):  # what ended the run is what its user must hear
            checkpointer.close()
        raise
    finally:
        cache.close()
        opened.close()


@dataclasses.dataclass
class _Save:
    """Save every so many steps: the loop's second feature."""

    every: int
    save: Callable[[int, TrainState], None]
    goodput: Goodput

    def __call__(self, step: int, *, state: TrainState) -> None:
        with self.goodput.spending("checkpoint"):
            self.save(step, state)
        self.goodput.write()


class _Evaluate:
    """Evaluate every so many steps: the loop's first feature."""

    def __init__(self, run: "_Run", *, start: int, writers: list[Writer], progress: Progress, goodput: Goodput):
        """Open the held-out rows of all phases to come: a shard that is damaged is found before the first step."""
        self.every = run.config.eval.every
        self._phases, self._writers, self._progress = run.program.phases, writers, progress
        self._goodput = goodput
        self._evaluators = {
            phase.start: run.evaluator(phase) for phase in self._phases if phase.end > start and run.can_evaluate(phase)
        }
        self.last: dict[str, float] = {}

    def __call__(self, step: int, *, state: TrainState) -> None:
        phase = phase_at(self._phases, step=max(step - 1, 0))
        if phase.start not in self._evaluators:
            return
        with self._goodput.spending("evaluation"):
            self.last = self._evaluators[phase.start](state.params)
        for writer in self._writers:
            writer.write(step, figures=self.last)
        self._progress.say(f"step {step}  {describe(self.last)}")


class _Run:
    """Hold what the parts of one run share."""

    def __init__(
        self,
        program: Program,
        *,
        opened: Opened,
        hosts: Hosts,
        report: Callable[[str], None],
        params: Any,
        cache: CompilationCache,
        begun: float,
    ):
        """Take what was opened; `params` to begin from, in host memory, or None for fresh ones."""
        self.program, self.config = program, program.config
        self._params, self._cache, self._begun = params, cache, begun
        self._opened, self._hosts, self._report = opened, hosts, report
        self._datasets, self._special = opened.datasets, special_ids(opened.tokenizer)
        self._steps: dict[int, Any] = {}

    def train(self, checkpointer: Checkpointer, *, command: str) -> int:
        path, end = self._opened.path, self.config.train.num_steps
        restored = checkpointer.restore(self._checked_target)
        start = restored.step if restored else 0
        if start >= end:
            self._report(
                f"training has already finished: {end} steps, checkpoint in {path / 'checkpoints' / str(start)}"
            )
            return FINISHED
        continues_source = self._params is not None
        state = restored.state if restored else self._first_state()
        self._params = None  # they are on the devices now, or not needed
        self._report(
            f"resuming at step {start} of {end}" if restored else f"starting: {end} steps on {self._devices()}"
        )
        window = MetricWindow(restored.metadata["window"] if restored else None)
        main_host = self._hosts.is_main
        writers = (
            make_writers(path, config=self.config.log, run_config=dataclasses.asdict(self.config), resume_step=start)
            if main_host
            else []
        )
        progress = Progress(start=start, end=end, enabled=main_host)
        goodput = Goodput(path if main_host else None, begun=self._begun, start=start)
        skipped = restored.metadata.get("nonfinite_steps", 0) if restored else 0
        log = self._step_log(window, writers, progress, checkpointer, goodput, skipped)

        def save(step: int, state: TrainState) -> None:
            checkpointer.save(step, state=state, metadata=self._metadata(log))

        def train_step(step: int) -> Any:
            return self._train_step(step, log=log)

        tracer = StepTracer(train_step, steps=self.config.profile.steps, directory=path / "profile")
        try:
            with log.outside_steps():
                with goodput.spending("startup"):
                    evaluate = _Evaluate(self, start=start, writers=writers, progress=progress, goodput=goodput)
                if continues_source and not restored:
                    evaluate(0, state=state)  # what the SOURCE knows before it sees this text
            with StopRequest() as request, AgreedStop(request, hosts=self._hosts) as stop:
                state, step = run_loop(
                    state,
                    start=start,
                    end=end,
                    batches=self._batches(start),
                    train_step=tracer,
                    log=log,
                    features=[evaluate, _Save(self.config.checkpoint.every, save, goodput)],
                    should_stop=stop,
                )
                with goodput.spending("checkpoint"):
                    if step < end:
                        save(step, state)
                    checkpointer.wait()
                goodput.write()
                status = PREEMPTED if stop.received == signal.SIGTERM else INTERRUPTED
        finally:
            tracer.close()
            progress.close()
            for writer in writers:
                writer.close()
        self._report(self._where_time_went(goodput))
        if step < end:
            self._report(f"stopped at step {step} of {end}, checkpoint saved; {command} resumes there")
            return status
        self._report(f"finished: {end} steps, checkpoint in {path / 'checkpoints' / str(end)}")
        if not evaluate.last:
            return FINISHED
        self._report(verdict(evaluate.last))
        if continues_source and main_host:
            self._report(perplexity_before_and_after(path / "metrics.jsonl"))
        return FINISHED

    def _first_state(self) -> TrainState:
        state = self.program.init_state()
        if self._params is None:
            return state
        return dataclasses.replace(state, params=jax.device_put(self._params, self.program.state_shardings.params))

    def can_evaluate(self, phase: Phase) -> bool:
        """Return whether the data set of `phase` has held-out rows; say so where it has none."""
        info = self._datasets[phase.max_seq_length]
        if not info.num_validation_rows:
            self._report(
                f"no evaluation: the data set in {info.directory} has no held-out rows of {phase.max_seq_length}"
            )
        return bool(info.num_validation_rows)

    def evaluator(self, phase: Phase) -> Evaluator:
        """Return the evaluation on the held-out rows of `phase`'s length."""
        return Evaluator(
            self.program,
            phase=phase,
            special=self._special,
            info=self._datasets[phase.max_seq_length],
            max_examples=self.config.eval.max_examples,
        )

    def _batches(self, start: int) -> Iterator[Rows]:
        """Yield the global batches of steps `start`, `start + 1`, ...: batch k is a function of (seed, k)."""
        shares, share_count = meshes.batch_shares(self.program.mesh)
        for index, phase in enumerate(self.program.phases):
            if phase.end <= start or phase.end == phase.start:
                continue
            # Phases of one length do not repeat each other's order.
            loader = PretrainingBatches(
                self._datasets[phase.max_seq_length].directory,
                max_seq_length=phase.max_seq_length,
                batch_size=phase.batch_size,
                seed=self.config.seed * 1000 + index,
                shares=shares,
                share_count=share_count,
            )
            first = max(start, phase.start) - phase.start
            for local in loader.iterate(start=first, stop=phase.end - phase.start):
                yield Rows(**meshes.to_global(local, mesh=self.program.mesh))

    def _train_step(self, step: int, *, log: StepLog) -> Any:
        phase = phase_at(self.program.phases, step=step)
        if phase.start not in self._steps:
            log.expect_compilation()
            self._steps[phase.start] = self.program.train_step(phase, special=self._special)
        return self._steps[phase.start]

    def _where_time_went(self, goodput: Goodput) -> str:
        if goodput.first_step_after is None:
            return goodput.describe()
        found = f"{self._cache.hits} of {self._cache.requests} programs from the compilation cache"
        return f"{goodput.describe()}; first step of this start after {goodput.first_step_after:.1f} s ({found})"

    def _step_log(
        self,
        window: MetricWindow,
        writers: list[Writer],
        progress: Progress,
        checkpointer: Checkpointer,
        goodput: Goodput,
        nonfinite_steps: int,
    ) -> StepLog:
        def cost(step: int) -> dict[str, float]:
            phase = phase_at(self.program.phases, step=step)
            info = self._datasets[phase.max_seq_length]
            flops = architecture_of(self.config.model).train_flops_per_row(
                self.config.model,
                max_seq_length=phase.max_seq_length,
                max_predictions=self.program.max_predictions(phase),
                instances=info.mean_instances,
                attended_share=info.attended_share,
            )
            rows = float(phase.batch_size)
            return {"sequences": rows, "tokens": rows * phase.max_seq_length, "flops": rows * flops}

        return StepLog(
            every=self.config.log.every,
            end=self.config.train.num_steps,
            window=window,
            writers=writers,
            progress=progress,
            learning_rate=lambda step: float(self.program.schedule(step)),
            cost_of_step=cost,
            peak_flops=peak_flops(jax.devices()[0].device_kind),
            last_good=checkpointer.settle,
            goodput=goodput,
            max_nonfinite_steps=self.config.train.max_nonfinite_steps,
            nonfinite_steps=nonfinite_steps,
        )

    def _metadata(self, log: StepLog) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(self.config),
            "fingerprints": self._opened.fingerprints,
            "window": log.window.to_json(),
            "nonfinite_steps": log.nonfinite_steps,
        }

    def _checked_target(self, metadata: dict[str, Any]) -> TrainState:
        """Return the abstract state, after checking that the checkpoint saw the same vocabulary and data."""
        for name, now in self._opened.fingerprints.items():
            before = metadata["fingerprints"].get(name, now)
            if before != now:
                raise UserError(
                    f"the checkpoint was trained with another {name} (fingerprint {before[:12]}) than the data set's "
                    f"({now[:12]}): give the old data set with --config.data.directory, or choose another --workdir"
                )
        return self.program.abstract_state()

    def _devices(self) -> str:
        kind = jax.devices()[0].device_kind
        return f"{jax.device_count()} x {kind}, {self._hosts.count} host" + ("s" if self._hosts.count > 1 else "")


def _silent(text: str) -> None:
    del text
