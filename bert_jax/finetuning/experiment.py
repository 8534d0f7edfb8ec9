"""Fine-tune on one task: every run of the sweep, the best kept as a SOURCE, results, predictions, errors.

WORKDIR/config.json             what was asked for
WORKDIR/vocab/                  the tokenizer
WORKDIR/checkpoints/STEP        the best run's best parameters
WORKDIR/results.json            all runs and their summary
WORKDIR/predictions/            of the best run, and of the ensemble
WORKDIR/errors-dev.jsonl        what it gets wrong
WORKDIR/runs/NAME/              metrics.jsonl, result.json and outputs of each run
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax.convert.source import Source
from bert_jax.errors import UserError
from bert_jax.finetuning import initial, report
from bert_jax.finetuning.config import FinetuneConfig
from bert_jax.finetuning.packing import row_shape
from bert_jax.finetuning.prediction import average_outputs, load_outputs, predict_outputs, save_outputs
from bert_jax.finetuning.program import TaskProgram
from bert_jax.finetuning.run import BEST, RunResult, Trainer, write_json
from bert_jax.finetuning.settings import RunSettings
from bert_jax.tasks.interface import Outputs, Split, Task

RESULT, CHECKPOINTS, RUNS = "result.json", "checkpoints", "runs"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Say what is to be done beside training."""

    runs: tuple[RunSettings, ...]
    predict_test: bool = False
    errors: int = 0
    ensemble: int = 0  # of so many best runs; 0: none
    fresh_parts: tuple[str, ...] = ()


class Experiment:
    """Hold what the runs of one task share."""

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        task: Task,
        source: Source,
        workdir: Path,
        wanted: Wanted,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ):
        """Read the data and lay out the program.

        Raises:
          UserError: if data, model and config do not go together.
        """
        self.config, self.task, self.workdir, self.wanted, self.say = config, task, workdir, wanted, say
        self._source = source
        tokenizer = source.require_tokenizer()
        self.train = task.load("train", tokenizer=tokenizer)
        self.evals = [task.load(name, tokenizer=tokenizer) for name in task.eval_splits()]
        tests = task.test_splits() if wanted.predict_test else ()
        self.tests = [task.load(name, tokenizer=tokenizer) for name in tests]
        self._check_labelled()
        model = initial.task_model(source, config=config)
        splits = [self.train, *self.evals, *self.tests]
        largest = max(run.batch_size for run in wanted.runs)
        shape = row_shape([split.features for split in splits], batch_size=largest)
        self.program = TaskProgram(config, model=model, task=task, shape=shape)
        self._params = initial.source_params(
            source, task=task, parts=tuple(self.program.state_shapes.params), fresh=wanted.fresh_parts
        )
        self._metadata = initial.checkpoint_metadata(source, task=task, model=model, config=config)
        self._constant = initial.constant_score(task, self.evals[0])
        self.trainer = self._trainer(self.train, should_stop)
        self._should_stop = should_stop

    def run_all(self) -> dict[str, Any]:
        """Run what has not been run, and return the results as they stand in results.json.

        Raises:
          Stopped: if the user asked to stop.
        """
        self._describe()
        results = []
        for number, settings in enumerate(self.wanted.runs, start=1):
            result = self._finished(settings)
            if result is None:
                self.say(f"run {number} of {len(self.wanted.runs)}: {settings.name}")
                result = self._run(settings)
            results.append(result)
            self._keep_best(results)
        return self._finish(results)

    def _run(self, settings: RunSettings) -> RunResult:
        directory = self._directory(settings)
        directory.mkdir(parents=True, exist_ok=True)
        result, params = self.trainer.run(settings, params=self._initial(settings), directory=directory)
        for split in [*self.evals, *self.tests]:
            outputs = predict_outputs(self.program, params, features=split.features)
            save_outputs(directory / f"outputs-{split.name}.npz", outputs=outputs)
            if split.features.targets is not None:
                if split is self.evals[0]:
                    self.task.calibrate(split, outputs)
                result.metrics[split.name] = self.task.score(split, outputs)
        last = result.history[-1].metrics[self.task.selection]
        result.collapsed = last <= self._constant
        write_json(directory / RESULT, result.to_json())
        return result

    def _initial(self, settings: RunSettings) -> dict[str, Any]:
        """Return the parameters a run begins with: the SOURCE's, and the parts it lacks drawn from the run's seed."""
        shapes = self.program.state_shapes.params
        missing = tuple(part for part in shapes if part not in self._params)
        fresh = self.program.fresh_params(jax.random.key(settings.seed), parts=missing)
        given = self._params | fresh
        return {part: given[part] for part in shapes}

    def _finished(self, settings: RunSettings) -> RunResult | None:
        path = self._directory(settings) / RESULT
        if not path.exists():
            return None
        result = RunResult.from_json(json.loads(path.read_text()))
        missing = [s for s in self.tests if not (self._directory(settings) / f"outputs-{s.name}.npz").exists()]
        if missing:
            raise UserError(
                f"{path.parent} was run without predicting {missing[0].name}, and only the best run's parameters are "
                "kept: choose another --workdir, or leave out --predict_test"
            )
        return result

    def _directory(self, settings: RunSettings) -> Path:
        return self.workdir / RUNS / settings.name

    def _keep_best(self, results: list[RunResult]) -> None:
        """Move the best run's parameters to the workdir's checkpoints, and remove the others'."""
        champion = self.champion(results)
        for result in results:
            kept = self._directory(result.settings) / BEST
            if not kept.exists():
                continue
            if result is champion:
                shutil.rmtree(self.workdir / CHECKPOINTS, ignore_errors=True)
                kept.replace(self.workdir / CHECKPOINTS)
            else:
                shutil.rmtree(kept)

    def champion(self, results: list[RunResult]) -> RunResult:
        """Return the first run with the best dev figure."""
        return max(results, key=lambda result: result.best.metrics[self.task.selection])

    def _outputs(self, result: RunResult, split: Split) -> Outputs:
        return load_outputs(self._directory(result.settings) / f"outputs-{split.name}.npz")

    def _finish(self, results: list[RunResult]) -> dict[str, Any]:
        champion = self.champion(results)
        dev = self.evals[0]
        self.task.calibrate(dev, self._outputs(champion, dev))
        for split in [*self.evals, *self.tests]:
            outputs = self._outputs(champion, split)
            self.task.write_predictions(split, outputs, directory=self.workdir / "predictions" / split.name)
        record: dict[str, Any] = {
            "task": self.task.name,
            "labels": list(self.task.labels),
            "selection": self.task.selection,
            "constant": self._constant,
            "train_examples": len(self.train.examples),
            "best": champion.to_json(),
            "summary": report.summarise(results, selection=self.task.selection),
            "tables": self.task.tables(dev, self._outputs(champion, dev)),
            "runs": [result.to_json() for result in results],
        }
        if self.wanted.ensemble:
            record["ensemble"] = self._ensemble(results)
        if self.wanted.errors:
            found = self.task.mistakes(dev, self._outputs(champion, dev), count=self.wanted.errors)
            report.write_errors(self.workdir / f"errors-{dev.name}.jsonl", found)
        write_json(self.workdir / "results.json", record)
        text = report.table(record)
        (self.workdir / "results.txt").write_text(text + "\n", encoding="utf-8")
        self.say(text)
        return record

    def _ensemble(self, results: list[RunResult]) -> dict[str, Any]:
        """Score the mean output of the best runs, and write its predictions."""
        if len(results) < self.wanted.ensemble:
            raise UserError(
                f"--ensemble={self.wanted.ensemble} of {len(results)} runs: type --seeds={self.wanted.ensemble} or more"
            )
        ranked = sorted(results, key=lambda r: -r.best.metrics[self.task.selection])[: self.wanted.ensemble]
        metrics = {}
        for split in [*self.evals, *self.tests]:
            outputs = average_outputs([self._outputs(result, split) for result in ranked])
            if split is self.evals[0]:
                self.task.calibrate(split, outputs)
            if split.features.targets is not None:
                metrics[split.name] = self.task.score(split, outputs)
            directory = self.workdir / "predictions" / f"ensemble-{split.name}"
            self.task.write_predictions(split, outputs, directory=directory)
        return {"runs": [result.settings.name for result in ranked], "metrics": metrics}

    def _trainer(self, train: Split, should_stop: Callable[[], bool]) -> Trainer:
        return Trainer(
            self.program,
            task=self.task,
            train=train.features,
            dev=self.evals[0],
            metadata=self._metadata,
            should_stop=should_stop,
            say=self.say,
        )

    def _check_labelled(self) -> None:
        for split in [self.train, *self.evals]:
            if split.features.targets is None:
                raise UserError(
                    f"the {split.name} set of {self.task.name} has no labels: name a labelled file, "
                    "or another --config.data.dev_split"
                )

    def _describe(self) -> None:
        drawn = [part for part in self.program.state_shapes.params if part not in self._params]
        shape = self.program.shape
        sizes = ", ".join(f"{s.name} {len(s.examples)}" for s in [self.train, *self.evals, *self.tests])
        self.say(
            f"{self.task.name}: {sizes} examples; rows of {shape.length} tokens hold up to "
            f"{shape.slots // shape.group} examples; fresh: {', '.join(drawn) or 'nothing'}; constant "
            f"{self.task.selection} {self._constant:.4f}"
        )
