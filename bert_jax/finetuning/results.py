"""Keep what each run gave on disk, and make of it the results, predictions and errors of a task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.files import read_json, write_json, write_json_lines, write_text
from bert_jax.finetuning import report
from bert_jax.finetuning.prediction import average_outputs, load_outputs, save_outputs
from bert_jax.finetuning.run_result import RunResult
from bert_jax.finetuning.settings import RunSettings
from bert_jax.finetuning.task_data import TaskData
from bert_jax.tasks.interface import Outputs, Split, Task

RESULT, RUNS = "result.json", "runs"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Say what is to be done beside training."""

    runs: tuple[RunSettings, ...]
    predict_test: bool = False
    errors: int = 0
    ensemble: int = 0  # of so many best runs; 0: none
    fresh_parts: tuple[str, ...] = ()


class TaskResults:
    """The runs of one task: the first of the evaluated splits selects, a model that learned nothing scores `constant`.

    On several hosts, host 0 alone writes and reads them.
    """

    def __init__(
        self,
        task: Task,
        *,
        directory: Path,
        wanted: Wanted,
        data: TaskData,
        constant: float,
        report: Callable[[str], None],
    ):
        """Keep runs under `directory`.

        Raises:
          UserError: if more runs are to be averaged than there are.
        """
        self.task, self.directory, self.wanted, self.constant = task, directory, wanted, constant
        self._evals, self._tests, self._report = data.evals, data.tests, report
        if len(wanted.runs) < wanted.ensemble:
            raise UserError(
                f"--ensemble={wanted.ensemble} of {len(wanted.runs)} runs: type --seeds={wanted.ensemble} or more"
            )

    @property
    def splits(self) -> list[Split]:
        """Return what every run is evaluated on or predicts."""
        return [*self._evals, *self._tests]

    def run_directory(self, settings: RunSettings) -> Path:
        """Return the folder of a run."""
        return self.directory / RUNS / settings.name

    def is_done(self, settings: RunSettings) -> bool:
        """Return whether a run has been run to its end."""
        return (self.run_directory(settings) / RESULT).exists()

    def all_finished(self) -> list[RunResult]:
        """Return what every finished run of the workdir gave: those wanted now in their order, then those of before."""
        wanted = [self.run_directory(settings) / RESULT for settings in self.wanted.runs]
        before = sorted((self.directory / RUNS).glob(f"*/{RESULT}"))
        paths = [path for path in (*wanted, *(p for p in before if p not in wanted)) if path.exists()]
        return [RunResult.from_json(read_json(path)) for path in paths]

    def add(self, result: RunResult, *, outputs: Mapping[str, Outputs]) -> None:
        """Save the outputs of a run's best parameters on every split, score them, and write the run's result."""
        for split in self.splits:
            save_outputs(self._file(result, split), outputs=outputs[split.name])
            if split.features.targets is not None:
                if split is self._evals[0]:
                    self.task.calibrate(split, outputs[split.name])
                result.metrics[split.name] = self.task.score(split, outputs[split.name])
        result.collapsed = result.history[-1].metrics[self.task.selection] <= self.constant
        write_json(self.run_directory(result.settings) / RESULT, result.to_json())

    def missing_of_champion(self) -> list[str]:
        """Return the names of the test sets that the best run has not predicted."""
        champion = self.champion(self.all_finished())
        return [split.name for split in self._tests if not self._file(champion, split).exists()]

    def add_to_champion(self, outputs: Mapping[str, Outputs]) -> None:
        """Save the best run's outputs on test sets that it was run without."""
        champion = self.champion(self.all_finished())
        for split in self._tests:
            if split.name in outputs:
                save_outputs(self._file(champion, split), outputs=outputs[split.name])

    def champion(self, results: Sequence[RunResult]) -> RunResult:
        """Return the first run with the best dev figure."""
        return max(results, key=lambda result: result.best.metrics[self.task.selection])

    def finish(self, *, facts: dict[str, Any]) -> dict[str, Any]:
        """Write results.json, results.txt, predictions and errors, and return the results, `facts` among them.

        Raises:
          UserError: if a run was run without predicting what is wanted now, and its parameters are not kept.
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
            "constant": self.constant,
            **facts,
            "best": champion.to_json(),
            "summary": report.summarize(results, selection=self.task.selection),
            "tables": self.task.tables(dev, best),
            "runs": [result.to_json() for result in results],
        }
        if self.wanted.errors:
            found = self.task.mistakes(dev, best, count=self.wanted.errors)
            write_json_lines(self.directory / f"errors-{dev.name}.jsonl", found)
        if self.wanted.ensemble:
            record["ensemble"] = self._ensemble(results)
        write_json(self.directory / "results.json", record)
        text = report.table(record)
        write_text(self.directory / "results.txt", text + "\n")
        self._report(text)
        return record

    def _ensemble(self, results: Sequence[RunResult]) -> dict[str, Any]:
        """Score the mean output of the best runs, and write its predictions."""
        ranked = sorted(results, key=lambda r: -r.best.metrics[self.task.selection])[: self.wanted.ensemble]
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
                f"{file.parent} was run without predicting {split.name}, and its parameters are not kept: choose "
                "another --workdir, or leave out --predict_test"
            )
        return load_outputs(file)

    def _file(self, result: RunResult, split: Split) -> Path:
        return self.run_directory(result.settings) / f"outputs-{split.name}.npz"
