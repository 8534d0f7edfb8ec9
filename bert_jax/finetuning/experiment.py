"""All runs of one task: train each in a session, keep the best model, write results, predictions and errors.

WORKDIR/config.json             the config
WORKDIR/origin.json, vocab/     digests of the pretrained model and the data, and the tokenizer
WORKDIR/checkpoints/STEP        the best parameters of the best run
WORKDIR/results.json            all runs and their summary
WORKDIR/predictions/            predictions of the best run, and of the ensemble
WORKDIR/errors-dev.jsonl        wrong predictions of the best run
WORKDIR/runs/NAME/              metrics.jsonl, goodput.json, result.json and outputs of each run
"""

import shutil
from pathlib import Path
from typing import Any

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.files import RESUME, writing
from bert_jax.finetuning.feature_based import FeatureBased
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.finetuning.initial import find_baseline, small_model_notes
from bert_jax.finetuning.job import BEST, TaskJob, open_best, restore_best
from bert_jax.finetuning.learner import Learner
from bert_jax.finetuning.origin import settle_origin
from bert_jax.finetuning.report import shown_baseline
from bert_jax.finetuning.results import ExperimentOptions, TaskResults
from bert_jax.finetuning.run_result import RunResult, Stopped
from bert_jax.finetuning.settings import RunSettings
from bert_jax.finetuning.task_data import load_task_data
from bert_jax.runs.runtime import Runtime
from bert_jax.runs.session import Session, SessionOptions
from bert_jax.tasks.interface import Task
from bert_jax.tasks.ner import TagTask

CHECKPOINTS, STATES = "checkpoints", "states"


class Experiment:
    """The runs of one task in one directory. All hosts of the runtime take part."""

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        task: Task,
        pretrained: PretrainedModel,
        options: ExperimentOptions,
        runtime: Runtime,
        directory: Path,
    ):
        """Read the data and set the learner up.

        Raises:
          UserError: if data, model and config do not fit together.
        """
        self.config, self.task, self.options, self.runtime, self.directory = config, task, options, runtime, directory
        self._pretrained = pretrained
        tokenizer, predict_test = pretrained.require_tokenizer(), options.predict_test
        self.data = load_task_data(task, tokenizer=tokenizer, predict_test=predict_test, report=runtime.report)
        self.learner = self._make_learner()
        self.results = TaskResults(
            task,
            directory=directory,
            options=options,
            data=self.data,
            baseline=find_baseline(task, self.data.evals[0]),
            report=runtime.report,
        )

    def run_all(self) -> dict[str, Any]:
        """Train the runs that are not finished. Return the content of results.json on host 0, {} on the others.

        Raises:
          Stopped: if the user asked to stop.
        """
        runtime, hosts = self.runtime, self.runtime.hosts
        settle_origin(
            self.directory,
            pretrained=self._pretrained,
            teacher=self.options.teacher,
            random_parts=self.options.random_parts,
            splits=self.data.splits,
            hosts=hosts,
        )
        runtime.report(
            f"{self.task.name}: {self.data.describe()} examples; {self.learner.describe()}; "
            f"{shown_baseline(self.task.selection, self.results.baseline.score)}"
        )
        rates = [settings.learning_rate for settings in self.options.runs]
        notes = small_model_notes(self._pretrained, config=self.config, rates=rates)
        for note in (*self.data.notes(self.task), *notes):
            runtime.report(note)
        is_done = hosts.from_main("finished runs", lambda: [self.results.is_done(s) for s in self.options.runs])
        if not all(is_done):
            self.learner.prepare()
        for number, (settings, done) in enumerate(zip(self.options.runs, is_done, strict=True), start=1):
            if not done:
                runtime.report(f"run {number} of {len(self.options.runs)}: {settings.name}")
                self._run(settings)
            with hosts.main_first("best run saved"):
                if hosts.is_main:
                    self._keep_best()
        self._predict_missing_splits()
        record: dict[str, Any] = {}
        with hosts.main_first("results"):
            if hosts.is_main:
                with writing(self.directory, remedy=RESUME):
                    record = self.results.finish(facts=self._facts())
        runtime.draw_page(self.directory)
        if not all(is_done):
            runtime.report_missing_page()
        return record

    def _make_learner(self) -> Learner:
        if self.config.features and isinstance(self.task, TagTask):
            if self.options.teacher is not None:
                raise UserError("--teacher: a tagger on frozen features does not learn from a teacher: omit it")
            return FeatureBased(self.config, task=self.task, pretrained=self._pretrained, data=self.data)
        return FineTuner(
            self.config,
            task=self.task,
            pretrained=self._pretrained,
            data=self.data,
            batch_sizes=[run.batch_size for run in self.options.runs],
            random_parts=self.options.random_parts,
            teacher=self.options.teacher,
        )

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"train_examples": len(self.data.train.examples)}
        return facts if self.learner.saves_best else {**facts, "features": self.config.features}

    def train(
        self, settings: RunSettings, *, directory: Path, job_class: type[TaskJob] = TaskJob
    ) -> tuple[RunResult, Any]:
        """Train a run in `directory`, or resume it there. Return its result and its best parameters.

        Raises:
          Stopped: if the user asked to stop. The state is saved.
        """
        config = self.config
        options = SessionOptions(
            config.checkpoint,
            config.log,
            profile_steps=config.profile.steps,
            max_nonfinite_steps=config.train.max_nonfinite_steps,
            checkpoints=STATES,
            page=self.directory,
        )
        job = job_class(
            self.learner,
            settings=settings,
            task=self.task,
            dev=self.data.evals[0],
            config=config,
            runtime=self.runtime,
            directory=directory,
        )
        with job:
            with Session(job, runtime=self.runtime, directory=directory, options=options) as session:
                if session.is_resumed:
                    self.runtime.report(f"resuming at step {session.start} of {job.num_steps}")
                end = session.train()
                if end.step < job.num_steps:
                    raise Stopped(end.step, job.num_steps)
            return job.result(end)

    def _run(self, settings: RunSettings) -> None:
        directory = self.results.run_directory(settings)
        directory.mkdir(parents=True, exist_ok=True)
        result, params = self.train(settings, directory=directory)
        outputs = {split.name: self.learner.outputs(params, split) for split in self.data.splits[1:]}
        with self.runtime.hosts.main_first("result of a run"):
            if self.runtime.hosts.is_main:
                with writing(directory, remedy=RESUME):
                    self.results.add(result, outputs=outputs)

    def _keep_best(self) -> None:
        """Move the best run's parameters to WORKDIR/checkpoints. Remove other parameters and states of finished runs.

        The best run is chosen among all runs in the directory, including those of earlier starts. Its parameters may
        have been moved already.
        """
        results = self.results.all_finished()
        champion = self.results.champion(results)
        for result in results:
            shutil.rmtree(self.results.run_directory(result.settings) / STATES, ignore_errors=True)
            parameters = self.results.run_directory(result.settings) / BEST
            if not parameters.exists():
                continue
            if result is champion and self.learner.saves_best:
                shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)
                parameters.replace(self.directory / CHECKPOINTS)
            else:
                shutil.rmtree(parameters)

    def _predict_missing_splits(self) -> None:
        """Predict the test sets that the best run has not predicted."""
        hosts = self.runtime.hosts
        missing = set(hosts.from_main("test sets not predicted", self.results.missing_of_champion))
        splits = [split for split in self.data.tests if split.name in missing and self.learner.saves_best]
        if not splits:
            return
        with open_best(self.directory / CHECKPOINTS, runtime=self.runtime) as best:
            params = restore_best(best, learner=self.learner)
        outputs = {split.name: self.learner.outputs(params, split) for split in splits}
        with hosts.main_first("test sets predicted"):
            if hosts.is_main:
                self.results.add_to_champion(outputs)
