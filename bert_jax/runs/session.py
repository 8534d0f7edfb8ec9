"""One training run on a machine or a pod: restore, loop, evaluate, save, stop.

Files in a session's directory:

    checkpoints/ (or another name)   the state, the metric window, and the job's metadata
    metrics.jsonl, tb/               metrics; lines after the restored checkpoint are removed and written again
    goodput.json                     wall time by kind, over all starts
    profile/                         traces of `profile.steps`
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.chips import peak_flops
from bert_jax.config import CheckpointConfig, LogConfig
from bert_jax.runs.checkpoint import Checkpointer
from bert_jax.runs.goodput import Goodput
from bert_jax.runs.job import Job, StepFunction
from bert_jax.runs.loop import Callback, run_loop
from bert_jax.runs.profiling import StepTracer
from bert_jax.runs.progress import Progress
from bert_jax.runs.recorder import Recorder
from bert_jax.runs.runtime import Runtime
from bert_jax.runs.step_log import NonfiniteSteps, StepFacts, StepLog
from bert_jax.runs.writers import make_writers
from bert_jax.training.metrics import MetricWindow
from bert_jax.training.state import TrainState
from bert_jax.training.steps import StepOutput


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """The options common to all training commands; `checkpoints` names the folder of the checkpoints."""

    checkpoint: CheckpointConfig
    log: LogConfig
    profile_steps: str = ""
    max_nonfinite_steps: int = 0
    checkpoints: str = "checkpoints"
    page: Path | None = None  # folder of the page that shows the run; None: its own


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of the loop: `step`, `state`, and `train_seconds` over all starts, without evaluations."""

    step: int
    state: TrainState
    train_seconds: float
    goodput: Goodput


class Session:
    """One job in `directory`, new or resumed. A context manager that every host of the runtime opens."""

    def __init__(self, job: Job, *, runtime: Runtime, directory: Path, options: SessionOptions):
        """Restore the newest good checkpoint, if there is one.

        Raises:
          UserError: if checkpoints cannot be read, or belong to other data.
        """
        self._job, self._runtime, self._directory, self._options = job, runtime, directory, options
        self._started_at = runtime.start_run()
        self._checkpointer = Checkpointer(
            runtime.checkpoints(directory, name=options.checkpoints),
            config=options.checkpoint,
            report=runtime.report,
            hosts=runtime.hosts,
        )
        try:
            self._restored = self._checkpointer.restore(job.abstract_state)
        except BaseException:
            self.__exit__(BaseException, None, None)
            raise
        self.start = self._restored.step if self._restored else 0
        self._metadata: Mapping[str, Any] = self._restored.metadata if self._restored else {}
        if self._restored:
            job.resume(self._metadata)

    @property
    def is_resumed(self) -> bool:
        """Return whether a checkpoint was restored."""
        return self._restored is not None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the metadata of the restored checkpoint, empty in a new run."""
        return self._metadata

    def __enter__(self) -> "Session":
        """Return the session."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Finish writing."""
        self._checkpointer.__exit__(*error)

    def train(self) -> Ended:
        """Train to the job's end, or until the runtime requests a stop; save the state there.

        Raises:
          UserError: if more steps than allowed have a non-finite loss, or a file cannot be written.
        """
        job, runtime, options, start = self._job, self._runtime, self._options, self.start
        state = job.placed(self._restored.state) if self._restored else job.initial_state()
        self._restored = None if self._restored is None else dataclasses.replace(self._restored, state=None)
        loop_start, earlier_seconds = time.monotonic(), float(self._metadata.get("seconds", 0.0))
        recorder = self._recorder()
        window = MetricWindow(self._metadata.get("window"))
        nonfinite = NonfiniteSteps(options.max_nonfinite_steps, self._metadata.get("nonfinite_steps", 0))
        log = self._log(window, recorder=recorder, nonfinite=nonfinite)

        def seconds() -> float:
            return earlier_seconds + time.monotonic() - loop_start - recorder.goodput.spent("evaluation")

        def save(step: int, state: TrainState) -> None:
            own = {"window": window.to_json(), "nonfinite_steps": nonfinite.count, "seconds": seconds()}
            runtime.publish()  # first: a complete checkpoint has the metrics up to its step
            self._checkpointer.save(step, state=job.stored(state), metadata={**job.metadata(), **own})

        tracer = StepTracer(
            self._compiling(job, log, recorder), steps=options.profile_steps, directory=self._directory / "profile"
        )
        try:
            evaluations = self._open_evaluations(state, log=log, recorder=recorder)
            state, step = run_loop(
                state,
                start=start,
                end=job.num_steps,
                batches=job.batches(start),
                train_step=tracer,
                log=log,
                callbacks=[
                    *evaluations,
                    *(
                        _DrawPage(item.every, runtime=runtime, page=options.page or self._directory)
                        for item in evaluations[:1]
                    ),
                    _SaveState(options.checkpoint.every, job=job, save=save, goodput=recorder.goodput),
                ],
                should_stop=runtime.should_stop,
            )
            with recorder.spending("checkpoint"):
                if step < job.num_steps:
                    save(step, state)
                self._checkpointer.wait()
            recorder.goodput.write()
        finally:
            recorder.close()
            tracer.close()
        return Ended(step=step, state=state, train_seconds=seconds(), goodput=recorder.goodput)

    def _open_evaluations(self, state: TrainState, *, log: StepLog, recorder: Recorder) -> Sequence[Callback]:
        with log.outside_steps(), recorder.spending("startup"):
            evaluations = self._job.evaluations(self.start, recorder=recorder)
        if self._job.evaluates_initial_state and not self.is_resumed:
            with log.outside_steps():
                for evaluate in evaluations:
                    evaluate(self.start, state=state)
        return evaluations

    def _log(self, window: MetricWindow, *, recorder: Recorder, nonfinite: NonfiniteSteps) -> StepLog:
        job = self._job
        return StepLog(
            every=self._options.log.every,
            end=job.num_steps,
            window=window,
            recorder=recorder,
            facts=StepFacts(job.learning_rate, job.cost_of_step, peak_flops(jax.devices()[0].device_kind)),
            nonfinite=nonfinite,
            last_good=self._checkpointer.settle,
            remedy=job.remedy,
        )

    def _recorder(self) -> Recorder:
        is_main, options = self._runtime.hosts.is_main, self._options
        directory = self._directory
        resume_step = self.start if self.is_resumed else -1  # a new run writes step 0 again
        writers = (
            make_writers(directory, config=options.log, run_config=self._job.run_config, resume_step=resume_step)
            if is_main
            else []
        )
        return Recorder(
            writers=writers,
            progress=Progress(start=self.start, end=self._job.num_steps, enabled=is_main),
            goodput=Goodput(directory if is_main else None, started_at=self._started_at, start=self.start),
        )

    @staticmethod
    def _compiling(job: Job, log: StepLog, recorder: Recorder) -> Callable[[int], StepFunction]:
        def train_step(step: int) -> StepFunction:
            is_new = job.compiles_at(step)
            function = job.train_step(step)
            if not is_new:
                return function
            log.expect_compilation()

            def compiled(state: TrainState, rows: Any) -> tuple[TrainState, StepOutput]:
                with recorder.progress.compiling(recorder.goodput.compile_seconds):
                    return function(state, rows)

            return compiled

        return train_step


class _DrawPage:
    """Callback that requests the page of the run after each evaluation."""

    def __init__(self, every: int, *, runtime: Runtime, page: Path):
        self.every = every
        self._runtime, self._page = runtime, page

    def __call__(self, step: int, *, state: TrainState) -> None:
        del step, state
        self._runtime.draw_page(self._page)


class _SaveState:
    """Callback that saves every `every` steps, and at the end if the job needs its final state."""

    def __init__(self, every: int, *, job: Job, save: Callable[[int, TrainState], None], goodput: Goodput):
        self.every = every
        self._job, self._save, self._goodput = job, save, goodput

    def __call__(self, step: int, *, state: TrainState) -> None:
        if step < self._job.num_steps or self._job.saves_final_state:
            with self._goodput.spending("checkpoint"):
                self._save(step, state)
        self._goodput.write()
