"""Fine-tune on one task: every run of the sweep, the best kept as a SOURCE, results, predictions, errors.

WORKDIR/config.json             what was asked for
WORKDIR/origin.json, vocab/     what the runs began from, and the tokenizer
WORKDIR/checkpoints/STEP        the best run's best parameters
WORKDIR/results.json            all runs and their summary
WORKDIR/predictions/            of the best run, and of the ensemble
WORKDIR/errors-dev.jsonl        what it gets wrong
WORKDIR/runs/NAME/              metrics.jsonl, result.json and outputs of each run
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.source import Source
from bert_jax.finetuning import initial
from bert_jax.finetuning.origin import settle_origin
from bert_jax.finetuning.packing import row_shape
from bert_jax.finetuning.prediction import predict_outputs
from bert_jax.finetuning.program import TaskProgram
from bert_jax.finetuning.results import TaskResults, Wanted, check_labelled
from bert_jax.finetuning.run import BEST, STATES, RunResult, Trainer
from bert_jax.finetuning.settings import RunSettings
from bert_jax.tasks.interface import Outputs, Split, Task

CHECKPOINTS = "checkpoints"


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
        check_labelled(task, [self.train, *self.evals])
        model = initial.task_model(source, config=config)
        splits = [self.train, *self.evals, *self.tests]
        largest = max(run.batch_size for run in wanted.runs)
        shape = row_shape([split.features for split in splits], batch_size=largest)
        self.program = TaskProgram(config, model=model, task=task, shape=shape)
        self._params = initial.source_params(
            source, task=task, parts=tuple(self.program.state_shapes.params), fresh=wanted.fresh_parts
        )
        self._metadata = initial.checkpoint_metadata(source, task=task, model=model, config=config)
        self.results = TaskResults(
            task,
            workdir=workdir,
            wanted=wanted,
            evals=self.evals,
            tests=self.tests,
            constant=initial.constant_score(task, self.evals[0]),
            say=say,
        )
        self.trainer = Trainer(
            self.program,
            task=task,
            train=self.train.features,
            dev=self.evals[0],
            metadata=self._metadata,
            should_stop=should_stop,
            say=say,
        )

    def run_all(self) -> dict[str, Any]:
        """Run what has not been run, and return the results as they stand in results.json.

        Raises:
          Stopped: if the user asked to stop.
        """
        splits = [self.train, *self.evals, *self.tests]
        settle_origin(self.workdir, source=self._source, fresh=self.wanted.fresh_parts, splits=splits)
        self._describe()
        results = []
        for number, settings in enumerate(self.wanted.runs, start=1):
            result = self.results.finished(settings)
            if result is None:
                self.say(f"run {number} of {len(self.wanted.runs)}: {settings.name}")
                result = self._run(settings)
            results.append(result)
            self._keep_best()

        def predict(split: Split) -> Outputs:
            params = self.trainer.load_best(self.workdir / CHECKPOINTS)
            return predict_outputs(self.program, params, features=split.features)

        return self.results.finish(predict=predict, facts={"train_examples": len(self.train.examples)})

    def _run(self, settings: RunSettings) -> RunResult:
        directory = self.results.directory(settings)
        directory.mkdir(parents=True, exist_ok=True)
        result, params = self.trainer.run(settings, params=self._initial(settings), directory=directory)
        self.results.add(result, outputs=lambda split: predict_outputs(self.program, params, features=split.features))
        shutil.rmtree(directory / STATES, ignore_errors=True)  # not before the result is there
        return result

    def _initial(self, settings: RunSettings) -> dict[str, Any]:
        """Return the parameters a run begins with: the SOURCE's, and the parts it lacks drawn from the run's seed."""
        shapes = self.program.state_shapes.params
        missing = tuple(part for part in shapes if part not in self._params)
        fresh = self.program.fresh_params(jax.random.key(settings.seed), parts=missing)
        given = self._params | fresh
        return {part: given[part] for part in shapes}

    def _keep_best(self) -> None:
        """Move the best run's parameters to the workdir's checkpoints, and remove the others'.

        The best of all that the workdir holds, of this start and earlier ones: its parameters may lie there already.
        """
        results = self.results.all_finished()
        champion = self.results.champion(results)
        for result in results:
            kept = self.results.directory(result.settings) / BEST
            if not kept.exists():
                continue
            if result is champion:
                shutil.rmtree(self.workdir / CHECKPOINTS, ignore_errors=True)
                kept.replace(self.workdir / CHECKPOINTS)
            else:
                shutil.rmtree(kept)

    def _describe(self) -> None:
        drawn = [part for part in self.program.state_shapes.params if part not in self._params]
        shape = self.program.shape
        sizes = ", ".join(f"{s.name} {len(s.examples)}" for s in [self.train, *self.evals, *self.tests])
        self.say(
            f"{self.task.name}: {sizes} examples; rows of {shape.length} tokens hold up to "
            f"{shape.slots // shape.group} examples; fresh: {', '.join(drawn) or 'nothing'}; constant "
            f"{self.task.selection} {self.results.constant:.4f}"
        )
