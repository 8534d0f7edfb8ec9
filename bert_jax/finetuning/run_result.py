"""The result of a run: its evaluations, the best of them, and the metrics of all splits."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from bert_jax.finetuning.settings import RunSettings
from bert_jax.json_forms import fit

Metrics = dict[str, float]


@dataclasses.dataclass
class Evaluation:
    """The metrics on the selection split after `step` steps."""

    step: int
    metrics: Metrics


@dataclasses.dataclass
class RunResult:
    """The result of a finished run. The parameters of the best evaluation are those that are saved."""

    settings: RunSettings
    num_steps: int
    history: list[Evaluation]
    best: Evaluation
    train_seconds: float
    sequences_per_second: float
    metrics: dict[str, Metrics] = dataclasses.field(default_factory=dict)  # of the best parameters, by labeled split
    collapsed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the result for results.json."""
        return {"name": self.settings.name, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "RunResult":
        """Return the result in a record of `to_json`.

        Raises:
          ValueError: naming the part that is something else.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        return fit({name: value for name, value in record.items() if name in fields}, cls)


def best_evaluation(history: Sequence[Evaluation], *, selection: str) -> Evaluation:
    """Return the best evaluation, the first of several. A metric that is not finite counts as the worst."""

    def score(evaluation: Evaluation) -> float:
        value = evaluation.metrics[selection]
        return value if math.isfinite(value) else -math.inf

    return max(history, key=score)


@dataclasses.dataclass  # not frozen: raising an exception sets its traceback
class Stopped(Exception):
    """The exception for a run that was stopped at a step. Its state is saved."""

    step: int
    num_steps: int
