"""The form of an experiment: models, columns, rows, tables. An experiment is data; nothing here runs anything."""

import dataclasses
from collections.abc import Mapping
from typing import Any

TASK, HELDOUT, PAIRS, AVERAGE = "task", "held-out text", "minimal pairs", "average"
BASE, LARGE, LSTM = "base", "large", "lstm"


@dataclasses.dataclass(frozen=True)
class Model:
    """A pre-trained model: what it changes of the scale's pre-training config.

    Attributes:
      title: its name in messages.
      size: "base", "large" or "lstm" of the scale, or the index of a row of Table 6.
      changes: fields of the pre-training config, by dotted name.
      is_curve: whether Figure 5 needs its intermediate checkpoints.
    """

    title: str
    size: str | int = BASE
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_curve: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """What is measured of each row.

    Attributes:
      key: its name in JSON, in `Row.paper` and in the scale.
      title: its heading.
      kind: TASK (fine-tuning), HELDOUT (the run's last evaluation), PAIRS, or AVERAGE of the columns before it.
      task: the name of the scale's task.
      metric: the name of the metric in the results.
      split: the split of a task.
      changes: fields of the fine-tuning config, by dotted name.
      percent: whether the paper gives the metric in percent.
      is_lower_better: whether a lower value is better.
    """

    key: str
    title: str
    kind: str = TASK
    task: str = ""
    metric: str = ""
    split: str = "dev"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    percent: bool = True
    is_lower_better: bool = False

    @property
    def factor(self) -> float:
        """Return what a metric is multiplied by."""
        return 100.0 if self.percent else 1.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A system of a table.

    Attributes:
      title: its name in the paper.
      model: its model in `models.MODELS`, or a pair separated by a comma; "" for a system that only the paper ran.
      paper: the paper's values by column; for Figure 5, decoded from the drawing.
      changes: fields of the fine-tuning configs of the row, by dotted name.
      task: replaces the columns' task, for another way to solve it.
      ensemble: whether the value is that of the averaged outputs of all seeds.
      curve, point: for Figure 5, the name of the curve and the fraction of all steps.
    """

    title: str
    model: str = ""
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: str = ""
    ensemble: bool = False
    curve: str = ""
    point: float = 1.0


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, or its Figure 5.

    Attributes:
      name: "1" to "8", or "figure5".
      title: what it shows.
      section: its section in the paper.
      columns, rows: what is measured of what.
      takes_measures: whether the scale's extra measures are added: it compares ways to pre-train.
      notes: what a reader must know to compare with the paper at any scale.
    """

    name: str
    title: str
    section: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    takes_measures: bool = False
    notes: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Return "Table 5" or "Figure 5"."""
        return "Figure 5" if self.name == "figure5" else f"Table {self.name}"

    @property
    def curves(self) -> list[str]:
        """Return the names of the curves of Figure 5, none of a table."""
        return list(dict.fromkeys(row.curve for row in self.rows if row.curve))
