"""Train one run: shuffle, pack, step, evaluate, keep the best; killed at any moment it goes on where it was."""

import contextlib
import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.chips import peak_flops
from bert_jax.config import CheckpointConfig
from bert_jax.errors import UserError
from bert_jax.finetuning.packing import PackedBatch, packed_batch
from bert_jax.finetuning.prediction import predict_outputs
from bert_jax.finetuning.program import TaskProgram
from bert_jax.finetuning.settings import RunSettings, learning_rate, step_settings
from bert_jax.model.architectures import architecture_of
from bert_jax.runs.checkpoint import Checkpointer
from bert_jax.runs.loop import run_loop
from bert_jax.runs.progress import Progress
from bert_jax.runs.step_log import StepLog
from bert_jax.runs.writers import Writer, make_writers
from bert_jax.tasks.interface import Features, Split, Task
from bert_jax.training.metrics import MetricWindow
from bert_jax.training.state import TrainState

Metrics = dict[str, float]
BEST, STATES = "best", "states"
KEEP_ONE = CheckpointConfig(every=1, keep_latest=1)
_AHEAD = 2  # batches packed before their step begins


@dataclasses.dataclass
class Evaluation:
    """Hold the figures of the selecting split after so many steps."""

    step: int
    metrics: Metrics


@dataclasses.dataclass
class RunResult:
    """Hold what a finished run gave; the best evaluation is the one whose checkpoint is kept."""

    settings: RunSettings
    num_steps: int
    history: list[Evaluation]
    best: Evaluation
    train_seconds: float
    sequences_per_second: float
    metrics: dict[str, Metrics] = dataclasses.field(default_factory=dict)  # of every labelled split, by the best
    collapsed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it for results.json."""
        return {"name": self.settings.name, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "RunResult":
        """Return what `to_json` gave."""
        fields = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in record.items() if name in fields}
        values["settings"] = RunSettings(**values["settings"])
        values["history"] = [Evaluation(**item) for item in values["history"]]
        values["best"] = Evaluation(**values["best"])
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Stopped(Exception):
    """Say that a run was stopped at a step, and whether its state is saved."""

    step: int
    num_steps: int
    saved: bool = True


def num_steps(settings: RunSettings, *, examples: int) -> int:
    """Return the updates of a run: whole steps an epoch, at least one."""
    return max(1, round(steps_per_epoch(settings, examples=examples) * settings.num_epochs))


def steps_per_epoch(settings: RunSettings, *, examples: int) -> int:
    """Return the updates of an epoch, rounded to whole ones."""
    return max(1, round(examples / settings.batch_size))


def batch_examples(settings: RunSettings, *, examples: int, step: int) -> np.ndarray:
    """Return the examples of batch number `step`: a stretch of the epochs' shuffles, one behind the other.

    A function of (seed, step) alone.
    """
    place = step * settings.batch_size
    found: list[np.ndarray] = []
    while sum(map(len, found)) < settings.batch_size:
        epoch, offset = divmod(place + sum(map(len, found)), examples)
        left = settings.batch_size - sum(map(len, found))
        found.append(_shuffle(settings.seed, epoch, examples)[offset : offset + left])
    return np.concatenate(found)


_SHUFFLES: dict[tuple[int, int, int], np.ndarray] = {}


def _shuffle(seed: int, epoch: int, examples: int) -> np.ndarray:
    key = (seed, epoch, examples)
    if key not in _SHUFFLES:
        if len(_SHUFFLES) > 1:
            _SHUFFLES.clear()
        _SHUFFLES[key] = np.random.default_rng([seed, epoch]).permutation(examples)
    return _SHUFFLES[key]


class Trainer:
    """Train runs of one task; `metadata` is what the best checkpoint must say to be a SOURCE."""

    def __init__(
        self,
        program: TaskProgram,
        *,
        task: Task,
        train: Features,
        dev: Split,
        metadata: dict[str, Any],
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ):
        """Train on `train`, select on `dev`."""
        self.program, self.task, self.config = program, task, program.config
        self._train, self._dev, self._metadata = train, dev, metadata
        self._should_stop, self._say = should_stop, say
        self._rows_of_step: dict[int, int] = {}

    def run(self, settings: RunSettings, *, params: dict[str, Any], directory: Path) -> tuple[RunResult, Any]:
        """Train to the end, or go on from the state that `directory` holds; return the result and the best parameters.

        Raises:
          Stopped: if `should_stop` said so; the state is saved.
          UserError: if the loss is not finite, or something cannot be written.
        """
        examples = self._train.num_examples
        total = num_steps(settings, examples=examples)
        states = Checkpointer(directory / STATES, config=self.config.checkpoint, report=self._say)
        best = Checkpointer(directory / BEST, config=KEEP_ONE, report=self._say)
        try:
            restored = states.restore(self.program.abstract_state())
            state = restored.state if restored else self.program.init_state(params)
            start = restored.step if restored else 0
            saved = restored.metadata if restored else {"history": [], "window": None, "seconds": 0.0}
            evaluate = _EvaluateAndKeep(self, settings, total, best, history=saved["history"])
            window = MetricWindow(saved["window"])
            main_host = jax.process_index() == 0
            writers = (
                make_writers(
                    directory, config=self.config.log, run_config=dataclasses.asdict(self.config), resume_step=start
                )
                if main_host
                else []
            )
            evaluate.writers = writers
            progress = Progress(start=start, end=total, enabled=main_host)
            evaluate.say = progress.say
            begun, before = time.monotonic(), saved["seconds"]

            def save(step: int, state: TrainState) -> None:
                spent = before + time.monotonic() - begun - evaluate.seconds
                history = [dataclasses.asdict(item) for item in evaluate.history]
                states.save(
                    step, state=state, metadata={"history": history, "window": window.to_json(), "seconds": spent}
                )

            try:
                state, step = run_loop(
                    state,
                    start=start,
                    end=total,
                    batches=self._batches(settings, start=start, end=total),
                    train_step=self._train_step(settings, total=total),
                    log=self._step_log(settings, total, window, writers, progress, states),
                    features=[evaluate, _Save(self.config.checkpoint.every, total, save)],
                    should_stop=self._should_stop,
                )
                if step < total:
                    save(step, state)
                    states.wait()
                    raise Stopped(step, total)
            finally:
                progress.close()
                for writer in writers:
                    writer.close()
            seconds = before + time.monotonic() - begun - evaluate.seconds
            best.wait()
            result = RunResult(
                settings=settings,
                num_steps=total,
                history=evaluate.history,
                best=evaluate.best(),
                train_seconds=seconds,
                sequences_per_second=total * settings.batch_size / max(seconds, 1e-9),
            )
            chosen = state.params
            if result.best.step != total:
                target = {"params": self.program.abstract_state().params}
                found = best.restore(target)
                assert found is not None
                chosen = found.state["params"]
        finally:
            states.close()
            best.close()
        return result, chosen

    def load_best(self, directory: Path) -> Any:
        """Return the parameters that `save_best` wrote to `directory`.

        Raises:
          UserError: if they cannot be read.
        """
        with contextlib.closing(Checkpointer(directory, config=KEEP_ONE, report=self._say)) as best:
            found = best.restore({"params": self.program.abstract_state().params})
        if found is None:
            raise UserError(f"{directory} holds no checkpoint: choose another --workdir")
        return found.state["params"]

    def save_best(self, best: Checkpointer, params: Any, evaluation: Evaluation, settings: RunSettings) -> None:
        """Save parameters as a SOURCE."""
        metadata = {
            **self._metadata,
            "settings": dataclasses.asdict(settings),
            "metrics": {self._dev.name: evaluation.metrics},
        }
        best.save(evaluation.step, state={"params": params}, metadata=metadata)

    def evaluate(self, params: Any) -> Metrics:
        """Return the figures of the dev set."""
        outputs = predict_outputs(self.program, params, features=self._dev.features)
        return self.task.score(self._dev, outputs)

    def _batches(self, settings: RunSettings, *, start: int, end: int) -> Iterator[Any]:
        """Yield the batches of steps, packed a few steps ahead by a thread, while the device works."""
        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(self._pack, settings, step) for step in range(start, min(start + _AHEAD, end)))
            for step in range(start, end):
                batch = ahead.popleft().result()
                if step + _AHEAD < end:
                    ahead.append(pool.submit(self._pack, settings, step + _AHEAD))
                self._rows_of_step[step] = len(batch.order)
                self._rows_of_step.pop(step - 4, None)  # the log is one or two steps behind
                yield self.program.to_device(batch.arrays)

    def _pack(self, settings: RunSettings, step: int) -> PackedBatch:
        chosen = batch_examples(settings, examples=self._train.num_examples, step=step)
        return packed_batch(
            self._train,
            chosen.tolist(),
            shape=self.program.shape,
            kind=self.program.kind,
            multiple=self.program.row_multiple,
        )

    def _train_step(self, settings: RunSettings, *, total: int) -> Callable[[int], Any]:
        fixed = step_settings(settings, num_steps=total, warmup_fraction=self.config.optimizer.warmup_fraction)
        return lambda step: lambda state, rows: self.program.train_step(state, rows, fixed)

    def _step_log(
        self,
        settings: RunSettings,
        total: int,
        window: MetricWindow,
        writers: list[Writer],
        progress: Progress,
        states: Checkpointer,
    ) -> StepLog:
        fixed = step_settings(settings, num_steps=total, warmup_fraction=self.config.optimizer.warmup_fraction)
        length = self.program.shape.length

        def cost(step: int) -> dict[str, float]:
            rows = self._rows_of_step[step]
            model = self.program.model
            flops = architecture_of(model).train_flops_per_row(model, max_seq_length=length, max_predictions=0)
            return {"sequences": settings.batch_size, "tokens": rows * length, "flops": rows * flops}

        def rate(step: int) -> float:
            return float(learning_rate(jnp.asarray(step), settings=fixed, recipe=self.config.recipe))

        return StepLog(
            every=self.config.log.every,
            end=total,
            window=window,
            writers=writers,
            progress=progress,
            learning_rate=rate,
            cost_of_step=cost,
            peak_flops=peak_flops(jax.devices()[0].device_kind),
            last_good=states.settle,
        )


@dataclasses.dataclass
class _Save:
    """Save every so many steps, but not at the end: the best is kept, and the state is not needed any more."""

    every: int
    end: int
    save: Callable[[int, TrainState], None]

    def __call__(self, step: int, *, state: TrainState) -> None:
        if step < self.end:
            self.save(step, state)


class _EvaluateAndKeep:
    """Evaluate on dev a few times an epoch and at the end, and keep the best parameters."""

    def __init__(
        self, trainer: Trainer, settings: RunSettings, total: int, best: Checkpointer, *, history: list[dict[str, Any]]
    ):
        epoch = steps_per_epoch(settings, examples=trainer._train.num_examples)
        self.every = max(1, round(epoch / trainer.config.train.evals_per_epoch))
        self._trainer, self._settings, self._total, self._best = trainer, settings, total, best
        self.history = [Evaluation(**item) for item in history]
        self.seconds = 0.0
        self.writers: list[Writer] = []
        self.say: Callable[[str], None] = print

    def best(self) -> Evaluation:
        """Return the first of the best evaluations."""
        return max(self.history, key=self._score)

    def _score(self, evaluation: Evaluation) -> float:
        score = evaluation.metrics[self._trainer.task.selection]
        return score if math.isfinite(score) else -math.inf

    def __call__(self, step: int, *, state: TrainState) -> None:
        begun = time.monotonic()
        jax.block_until_ready(state.params)
        waited = time.monotonic() - begun  # the steps' own time
        metrics = self._trainer.evaluate(state.params)
        evaluation = Evaluation(step, metrics)
        self.history.append(evaluation)
        if self.best() is evaluation:
            self._trainer.save_best(self._best, state.params, evaluation, self._settings)
        for writer in self.writers:
            writer.write(step, figures={f"eval/{name}": value for name, value in metrics.items()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say(f"step {step}/{self._total}  dev: {shown}")
        self.seconds += time.monotonic() - begun - waited
