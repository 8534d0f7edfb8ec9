"""A fine-tuning run as a job of the session: shuffled epochs, evaluation on dev, the best parameters saved."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.config import CheckpointConfig
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError
from bert_jax.finetuning.batches import num_steps, steps_per_epoch
from bert_jax.finetuning.learner import Learner
from bert_jax.finetuning.report import shown_metrics
from bert_jax.finetuning.run_result import Evaluation, RunResult, best_evaluation
from bert_jax.finetuning.settings import RunSettings, learning_rate, step_settings
from bert_jax.runs.checkpoint import Checkpointer
from bert_jax.runs.job import Job, StepFunction
from bert_jax.runs.recorder import Recorder
from bert_jax.runs.runtime import Runtime
from bert_jax.runs.session import Ended
from bert_jax.tasks.interface import Split, Task
from bert_jax.training.state import TrainState

BEST = "best"
# The second-best checkpoint is needed if a kill sends the run back to a state from before the newest one.
_KEEP = CheckpointConfig(every=1, keep_latest=2)


class TaskJob(Job):
    """A run of the sweep, trained by a learner. Its best parameters are in `directory`/best after the job exits."""

    remedy = (
        "lower config.optimizer.learning_rate (in a sweep, remove this rate from config.sweep.learning_rate) or raise "
        "config.optimizer.warmup_fraction"
    )
    saves_final_state = False  # the best parameters are saved, and nothing resumes from the last state

    def __init__(
        self,
        learner: Learner,
        *,
        settings: RunSettings,
        task: Task,
        dev: Split,
        config: FinetuneConfig,
        runtime: Runtime,
        directory: Path,
    ):
        """Set the job up to train on the learner's examples and select on `dev`."""
        self.learner, self.settings, self.task, self.dev, self.config = learner, settings, task, dev, config
        self.num_steps = num_steps(settings, examples=learner.num_examples)
        self.run_config = dataclasses.asdict(config)
        self.history: list[Evaluation] = []
        self._best = open_best(directory / BEST, runtime=runtime)
        self._fixed = step_settings(
            settings, num_steps=self.num_steps, warmup_fraction=config.optimizer.warmup_fraction
        )
        self._shapes: dict[int, tuple[Any, ...]] = {}
        self._costs: dict[int, Mapping[str, float]] = {}

    def __enter__(self) -> "TaskJob":
        """Return the job; leaving it waits for the best parameters to be written."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Finish writing the best parameters."""
        self._best.__exit__(*error)

    def abstract_state(self, metadata: Mapping[str, Any]) -> TrainState:
        """Return that of the learner. `origin.py` has checked for the whole workdir that the data are the same."""
        del metadata
        return self.learner.abstract_state()

    def placed(self, state: TrainState) -> TrainState:
        """Return a restored state as the learner's steps take it."""
        return self.learner.placed(state)

    def stored(self, state: TrainState) -> TrainState:
        """Return a state of the learner's steps as checkpoints have it."""
        return self.learner.stored(state)

    def initial_state(self) -> TrainState:
        """Return the learner's initial state."""
        return self.learner.initial_state(self.settings)

    def batches(self, start: int) -> Iterator[Any]:
        """Yield the learner's batches, and record their cost until their steps are logged."""
        steps = range(start, self.num_steps)
        for step, rows in zip(steps, self.learner.batches(self.settings, start=start, end=self.num_steps), strict=True):
            self._shapes[step] = tuple(leaf.shape for leaf in jax.tree.leaves(rows))
            self._costs[step] = self.learner.cost(rows)
            self._costs.pop(step - 4, None)  # the log lags by one or two steps
            yield rows

    def train_step(self, step: int) -> StepFunction:
        """Return the learner's step with this run's learning rate and seed."""
        self.learner.compiled_shapes.add(self._shapes.pop(step))
        return lambda state, rows: self.learner.train_step(state, rows, self._fixed)

    def compiles_at(self, step: int) -> bool:
        """Return whether the batch of `step` has a shape that is new to this learner."""
        return self._shapes[step] not in self.learner.compiled_shapes

    def learning_rate(self, step: int) -> float:
        """Return the run's learning rate at `step`."""
        return float(learning_rate(jnp.asarray(step), settings=self._fixed, recipe=self.config.recipe))

    def cost_of_step(self, step: int) -> Mapping[str, float]:
        """Return sequences (here examples), tokens and FLOPs of the batch of `step`."""
        return {"sequences": self.settings.batch_size, **self._costs[step]}

    def evaluations(self, start: int, *, recorder: Recorder) -> Sequence["_EvaluateAndKeep"]:
        """Return the callback that evaluates a few times per epoch and at the end."""
        del start
        return [_EvaluateAndKeep(self, recorder=recorder)]

    def metadata(self) -> dict[str, Any]:
        """Return the evaluations so far. The best parameters are on disk before any state whose history lists them."""
        self._best.wait()
        return {"history": [dataclasses.asdict(item) for item in self.history]}

    def resume(self, metadata: Mapping[str, Any]) -> None:
        """Restore the list of evaluations, and delete best parameters that are newer than the restored state."""
        self.history = [Evaluation(**item) for item in metadata["history"]]
        last = self.history[-1].step if self.history else 0
        self._best.keep_only(lambda step: step <= last)

    @property
    def best(self) -> Evaluation:
        """Return the best evaluation, the first of several."""
        return best_evaluation(self.history, selection=self.task.selection)

    def evaluate(self, step: int, params: Any) -> Evaluation:
        """Evaluate on dev, and save the parameters if they are the best so far."""
        evaluation = Evaluation(step, self.task.score(self.dev, self.learner.outputs(params, self.dev)))
        self.history.append(evaluation)
        if self.best is evaluation:
            record = {
                **self.learner.metadata,
                "settings": dataclasses.asdict(self.settings),
                "metrics": {self.dev.name: evaluation.metrics},
            }
            self._best.save(step, state={"params": self.learner.stored(params)}, metadata=record)
        return evaluation

    def result(self, end: Ended) -> tuple[RunResult, Any]:
        """Return the result of the run and its best parameters."""
        best = self.best
        self._best.keep_only(lambda step: step == best.step)
        result = RunResult(
            settings=self.settings,
            num_steps=self.num_steps,
            history=self.history,
            best=best,
            train_seconds=end.train_seconds,
            sequences_per_second=self.num_steps * self.settings.batch_size / max(end.train_seconds, 1e-9),
        )
        if result.best.step == self.num_steps:
            return result, end.state.params
        return result, restore_best(self._best, learner=self.learner, step=best.step)


def open_best(directory: Path, *, runtime: Runtime) -> Checkpointer:
    """Return the checkpoints of best parameters in `directory`."""
    return Checkpointer(directory, config=_KEEP, report=runtime.report, hosts=runtime.hosts)


def restore_best(best: Checkpointer, *, learner: Learner, step: int | None = None) -> Any:
    """Return the best parameters that a job saved, those of `step` or the newest.

    Raises:
      UserError: if there are none.
    """
    checkpoint = best.restore({"params": learner.abstract_state().params}, step=step)
    if checkpoint is None:
        raise UserError("the checkpoint with the best parameters of a run is missing: choose another --workdir")
    return learner.placed(checkpoint.state["params"])


class _EvaluateAndKeep:
    """The evaluation on dev, a few times per epoch and at the end."""

    def __init__(self, job: TaskJob, *, recorder: Recorder):
        epoch = steps_per_epoch(job.settings, examples=job.learner.num_examples)
        self.every = max(1, round(epoch / job.config.train.evals_per_epoch))
        self._job, self._recorder = job, recorder

    def __call__(self, step: int, *, state: TrainState) -> None:
        jax.block_until_ready(state.params)  # the step's time must not count as evaluation
        with self._recorder.spending("evaluation"):
            metrics = self._job.evaluate(step, state.params).metrics
        self._recorder.write(step, {f"eval/{name}": value for name, value in metrics.items()})
        self._recorder.say(f"step {step}/{self._job.num_steps}  {self._job.dev.name}: {shown_metrics(metrics)}")
