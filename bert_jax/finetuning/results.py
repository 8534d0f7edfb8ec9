"""The files of a task: result and outputs of each run; results, predictions and errors of the best run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.files import write_json, write_json_lines, write_text
from bert_jax.finetuning import report
from bert_jax.finetuning.prediction import average_outputs, load_outputs, save_outputs
from bert_jax.finetuning.run_result import RunResult
from bert_jax.finetuning.settings import RunSettings
from bert_jax.finetuning.task_data import TaskData
from bert_jax.json_files import read_json
from bert_jax.kinds.base import Baseline
from bert_jax.tasks.interface import Outputs, Split, Task

RESULT, RUNS = "result.json", "runs"
_SHOWN_MISTAKES = 20  # in results.json; --errors writes more


@dataclasses.dataclass(frozen=True)
class ExperimentOptions:
    """What an experiment is to do."""

    runs: tuple[RunSettings, ...]
    predict_test: bool = False
    errors: int = 0  # number of wrong predictions to write
    ensemble: int = 0  # number of best runs to average; 0: no ensemble
    random_parts: tuple[str, ...] = ()  # parts of the model to initialize randomly
    teacher: PretrainedModel | None = None  # a model whose outputs are learned


class TaskResults:
    """The files of one task's runs. The first evaluated split selects the best run.

    With several hosts, only host 0 reads and writes them. `baseline` is a model that has learned nothing.
    """

    def __init__(
        self,
        task: Task,
        *,
        directory: Path,
        options: ExperimentOptions,
        data: TaskData,
        baseline: Baseline,
        report: Callable[[str], None],
    ):
        """Set up the files in `directory`.

        Raises:
          UserError: if the ensemble has more runs than there are.
        """
        self.task, self.directory, self.options, self.baseline = task, directory, options, baseline
        self._evals, self._tests, self._report = data.evals, data.tests, report
        if len(options.runs) < options.ensemble:
            raise UserError(
                f"--ensemble={options.ensemble} of {len(options.runs)} runs: type --seeds={options.ensemble} or more"
            )

    @property
    def splits(self) -> list[Split]:
        """Return the splits that each run is evaluated on or predicts."""
        return [*self._evals, *self._tests]

    def run_directory(self, settings: RunSettings) -> Path:
        """Return the folder of a run."""
        return self.directory / RUNS / settings.name

    def is_done(self, settings: RunSettings) -> bool:
        """Return whether a run is finished."""
        return (self.run_directory(settings) / RESULT).exists()

    def all_finished(self) -> list[RunResult]:
        """Return the results of all finished runs: first those of `options` in order, then earlier ones."""
        current = [self.run_directory(settings) / RESULT for settings in self.options.runs]
        all_runs = sorted((self.directory / RUNS).glob(f"*/{RESULT}"))
        paths = [path for path in (*current, *(p for p in all_runs if p not in current)) if path.exists()]
        return [self._read(path) for path in paths]

    def _read(self, path: Path) -> RunResult:
        remedy = f"delete {path.parent} and run the same command again"
        try:
            result = RunResult.from_json(read_json(path, remedy=remedy))
            if self.task.selection not in result.best.metrics:
                raise ValueError(f"best.metrics has no {self.task.selection}")
        except ValueError as error:
            raise UserError(f"{path}: {error}: {remedy}") from None
        return result

    def add(self, result: RunResult, *, outputs: Mapping[str, Outputs]) -> None:
        """Save the outputs of a run's best parameters on all splits, score them, and write the run's result."""
        for split in self.splits:
            save_outputs(self._file(result, split), outputs=outputs[split.name])
            if split.features.targets is not None:
                if split is self._evals[0]:
                    self.task.calibrate(split, outputs[split.name])
                result.metrics[split.name] = self.task.score(split, outputs[split.name])
        result.collapsed = result.history[-1].metrics[self.task.selection] <= self.baseline.score
        write_json(self.run_directory(result.settings) / RESULT, result.to_json())

    def missing_of_champion(self) -> list[str]:
        """Return the names of the test sets that the best run has not predicted."""
        champion = self.champion(self.all_finished())
        return [split.name for split in self._tests if not self._file(champion, split).exists()]

    def add_to_champion(self, outputs: Mapping[str, Outputs]) -> None:
        """Save the best run's outputs on test sets that it had not predicted."""
        champion = self.champion(self.all_finished())
        for split in self._tests:
            if split.name in outputs:
                save_outputs(self._file(champion, split), outputs=outputs[split.name])

    def champion(self, results: Sequence[RunResult]) -> RunResult:
        """Return the run with the best score on the split that selects, the first of several."""
        return max(results, key=lambda result: result.best.metrics[self.task.selection])

    def finish(self, *, facts: dict[str, Any]) -> dict[str, Any]:
        """Write results.json, results.txt, predictions and errors, and return the results with `facts` added.

        Raises:
          UserError: if a run did not predict a split that is needed now, and its parameters are gone.
        """
        results = self.all_finished()
        champion = self.champion(results)
        dev = self._evals[0]
        best = self._outputs(champion, dev)
        self.task.calibrate(dev, best)
        for split in self.splits:
            directory = self.directory / "predictions" / split.name
            self.task.write_predictions(split, self._outputs(champion, split), directory=directory)
        record: dict[str, Any] = {
            "task": self.task.name,
            "labels": list(self.task.labels),
            "selection": self.task.selection,
            "selection_split": dev.name,
            "constant": self.baseline.score,
            **facts,
            "best": champion.to_json(),
            "summary": report.summarize(results, selection=self.task.selection),
            "tables": self.task.tables(dev, best),
            "mistakes": self.task.mistakes(dev, best, count=_SHOWN_MISTAKES),
            "runs": [result.to_json() for result in results],
        }
        if self.options.errors:
            errors = self.task.mistakes(dev, best, count=self.options.errors)
            write_json_lines(self.directory / f"errors-{dev.name}.jsonl", errors)
        if self.options.ensemble:
            record["ensemble"] = self._ensemble(results)
        write_json(self.directory / "results.json", record)
        scored = 0 if self.task.kind.per_token else len(dev.examples)  # words of a sentence are not independent
        sentence = report.verdict(record, answer=self.baseline.answer, examples=scored)
        text = f"{report.table(record)}\n{sentence}"
        write_text(self.directory / "results.txt", text + "\n")
        self._report(text)
        return record

    def _ensemble(self, results: Sequence[RunResult]) -> dict[str, Any]:
        """Score the mean outputs of the best runs, and write their predictions."""
        ranked = sorted(results, key=lambda r: -r.best.metrics[self.task.selection])[: self.options.ensemble]
        metrics = {}
        for split in self.splits:
            outputs = average_outputs([self._outputs(result, split) for result in ranked])
            if split is self._evals[0]:
                self.task.calibrate(split, outputs)
            if split.features.targets is not None:
                metrics[split.name] = self.task.score(split, outputs)
            directory = self.directory / "predictions" / f"ensemble-{split.name}"
            self.task.write_predictions(split, outputs, directory=directory)
        return {"runs": [result.settings.name for result in ranked], "metrics": metrics}

    def _outputs(self, result: RunResult, split: Split) -> Outputs:
        file = self._file(result, split)
        if not file.exists():
            raise UserError(
                f"{file.parent}: this run has not predicted {split.name}, and its parameters are not saved: choose "
                "another --workdir, or omit --predict_test"
            )
        return load_outputs(file)

    def _file(self, result: RunResult, split: Split) -> Path:
        return self.run_directory(result.settings) / f"outputs-{split.name}.npz"
