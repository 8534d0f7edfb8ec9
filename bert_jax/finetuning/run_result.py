"""What a run of a task gave: its evaluations, the best of them, and the metrics of every split."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from bert_jax.finetuning.settings import RunSettings

Metrics = dict[str, float]


@dataclasses.dataclass
class Evaluation:
    """The metrics of the selecting split after `step` steps."""

    step: int
    metrics: Metrics


@dataclasses.dataclass
class RunResult:
    """What a finished run gave; the best evaluation is the one whose checkpoint is kept."""

    settings: RunSettings
    num_steps: int
    history: list[Evaluation]
    best: Evaluation
    train_seconds: float
    sequences_per_second: float
    metrics: dict[str, Metrics] = dataclasses.field(default_factory=dict)  # of every labeled split, by the best
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


def best_evaluation(history: Sequence[Evaluation], *, selection: str) -> Evaluation:
    """Return the first of the best evaluations; one that is not finite is the worst."""

    def score(evaluation: Evaluation) -> float:
        value = evaluation.metrics[selection]
        return value if math.isfinite(value) else -math.inf

    return max(history, key=score)


@dataclasses.dataclass  # not frozen: what raises an exception sets its traceback
class Stopped(Exception):
    """Say that a run was stopped at a step; its state is saved."""

    step: int
    num_steps: int
