"""A table at a scale: each cell is a unit of work, or the reason why there is none."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import Config, builder, from_config_dict, model_preset
from bert_jax.config import finetuning as finetuning_config
from bert_jax.config.reproduction import ScaleConfig, ScaledTask, with_changes
from bert_jax.errors import UserError
from bert_jax.reproduction.experiments import AVERAGE, BASE, HELDOUT, LARGE, LSTM, PAIRS, Column, Model, Row, Table
from bert_jax.reproduction.finetuning import FinetuningWork
from bert_jax.reproduction.models import CASED, MODELS
from bert_jax.reproduction.pairs import PairsWork
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.tables import COLUMNS
from bert_jax.reproduction.work import Work

_SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
NOT_RUN = "only the paper's value"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table: the unit that computes it, or why there is none; and the models of its row."""

    row: Row
    column: Column
    unit: Work | None = None
    missing: str = ""
    models: tuple[PretrainingWork, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: the scale, where data are, and how many seeds."""

    scale: ScaleConfig
    title: str
    data_dir: Path
    seeds: int


def columns_of(table: Table, *, scale: ScaleConfig) -> list[Column]:
    """Return the columns at a scale: the paper's, or what replaces them, and the scale's measures.

    Raises:
      UserError: if the scale names a column that does not exist.
    """
    replaced = dict(text.split("=") for text in scale.replacements)
    for name in (*replaced, *replaced.values(), *scale.measures):
        if name not in COLUMNS:
            raise UserError(f"the scale names the column {name!r}: choose one of {', '.join(COLUMNS)}")
    columns = [COLUMNS[replaced[column.key]] if column.key in replaced else column for column in table.columns]
    columns += [COLUMNS[key] for key in scale.measures if table.takes_measures]
    return list({column.key: column for column in columns}.values())


def rows_of(table: Table, *, scale: ScaleConfig) -> list[Row]:
    """Return the rows at a scale: of Figure 5 those whose points the scale has.

    Raises:
      UserError: if the scale has a point that Figure 5 does not have.
    """
    known = {row.point for row in table.rows}
    if table.curves and (unknown := set(scale.points) - known):
        raise UserError(f"config.points: {min(unknown):g}: choose from {', '.join(f'{p:g}' for p in sorted(known))}")
    return [row for row in table.rows if not row.curve or row.point in scale.points]


class Resolver:
    """Makes the units of tables. Models are made once, so that cells share them."""

    def __init__(self, request: Request):
        self._request = request
        self._models: dict[str, PretrainingWork] = {}

    def cells(self, table: Table) -> list[Cell]:
        """Return the cells of a table, row by row.

        Raises:
          UserError: if the scale is wrong.
        """
        scale = self._request.scale
        return [
            self._cell(row, column)
            for row in rows_of(table, scale=scale)
            for column in columns_of(table, scale=scale)
            if column.kind != AVERAGE
        ]

    def _cell(self, row: Row, column: Column) -> Cell:
        if not row.model:
            return Cell(row, column, missing=NOT_RUN)
        try:
            models = [self._model(name) for name in row.model.split(",")]
        except UserError as error:
            return Cell(row, column, missing=str(error))
        try:
            return Cell(row, column, unit=self._unit(row, column, models=models), models=tuple(models))
        except UserError as error:
            return Cell(row, column, missing=str(error), models=tuple(models))

    def _unit(self, row: Row, column: Column, *, models: Sequence[PretrainingWork]) -> Work:
        """Return the unit of a cell.

        Raises:
          UserError: if something that it needs is missing.
        """
        step = round(row.point * models[0].num_steps)
        if column.kind == HELDOUT:
            return _evaluated(models, step=step)
        if column.kind == PAIRS:
            return self._pairs(row, models=models, step=step)
        task = self._task(row.task or column.task)
        changes = {**({} if row.task else column.changes), **self._own_changes(row, task=task)}
        config = finetuning_config.from_config_dict(with_changes(builder.to_dict(task.config), self._located(changes)))
        config = self._with_directory(config)
        changed = ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in changes.items())
        title = f"fine-tune {task.name} from {_title(row, models, step=step)}" + (f", {changed}" if changed else "")
        seeds = self._request.seeds
        return FinetuningWork(config, models=models, step=step, title=title, seeds=seeds, sweep=task.sweep)

    def _pairs(self, row: Row, *, models: Sequence[PretrainingWork], step: int) -> Work:
        if not self._request.scale.minimal_pairs:
            raise UserError(f"the scale {self._request.title} names no file of minimal pairs")
        if len(models) > 1:
            raise UserError("a pair of language models gives no likelihood of its own")
        scale = self._request.scale
        file, title = self._request.data_dir / scale.minimal_pairs, _title(row, models, step=step)
        return PairsWork(file, limit=scale.pairs_per_paradigm, model=models[0], step=step, title=title)

    def _own_changes(self, row: Row, *, task: ScaledTask) -> dict[str, Any]:
        """Return the changes of a row that concern the task: options of other tasks are left out."""
        optional = set(builder.optional_groups(type(task.config)))
        present = {name for name in optional if getattr(task.config, name) is not None}
        return {
            path: value
            for path, value in row.changes.items()
            if path.partition(".")[0] not in optional or path.partition(".")[0] in present
        }

    def _task(self, name: str) -> ScaledTask:
        for task in self._request.scale.tasks:
            if task.name == name:
                return task
        raise UserError(f"the scale {self._request.title} has no task {name}")

    def _located(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return changes with files in --data_dir as absolute paths."""
        return {
            path: str(self._request.data_dir / value) if path.endswith("_file") else value
            for path, value in changes.items()
        }

    def _with_directory(self, config: finetuning_config.FinetuneConfig) -> finetuning_config.FinetuneConfig:
        directory = config.data.directory
        if not directory.startswith("tfds:"):
            directory = str(self._request.data_dir / directory)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, directory=directory))

    def _model(self, name: str) -> PretrainingWork:
        """Return the run of a model.

        Raises:
          UserError: if the config of the scale with the changes of the model is wrong, or its text is missing.
        """
        if name not in self._models:
            self._models[name] = self._pretraining(MODELS[name])
        return self._models[name]

    def _pretraining(self, model: Model) -> PretrainingWork:
        scale = self._request.scale
        config = _with_shape(scale, model.size)
        changes = {} if model.changes == CASED and not scale.has_cased else model.changes
        config = from_config_dict(with_changes(builder.to_dict(config), changes))
        data = dataclasses.replace(
            config.data, input=self._text(config.data.input), vocab=self._path(config.data.vocab)
        )
        points = [round(point * config.train.num_steps) for point in scale.points] if model.is_curve else []
        return PretrainingWork(dataclasses.replace(config, data=data), title=model.title, points=points)

    def _text(self, inputs: str) -> str:
        """Return the inputs with files as absolute paths."""
        return ",".join(
            item if item.startswith("tfds:") or item == "embedded" else self._path(item) for item in inputs.split(",")
        )

    def _path(self, name: str) -> str:
        return str(self._request.data_dir / name) if name else ""


def _title(row: Row, models: Sequence[PretrainingWork], *, step: int) -> str:
    names = " and ".join(MODELS[name].title for name in row.model.split(","))
    return names if step == models[0].num_steps else f"{names} at step {step}"


def _evaluated(models: Sequence[PretrainingWork], *, step: int) -> Work:
    """Return the run whose last evaluation is a cell.

    Raises:
      UserError: if the cell is of another checkpoint, or of a pair.
    """
    if len(models) > 1:
        raise UserError("a pair of language models has no loss of its own")
    if step != models[0].num_steps:
        raise UserError("the loss on held-out text is that at the end of the run")
    return models[0]


def _with_shape(scale: ScaleConfig, size: str | int) -> Config:
    """Return the scale's pre-training config with the shape of BERT-Large, or of a row of Table 6."""
    if size == BASE:
        return scale.pretraining
    named = {LARGE: scale.large, LSTM: scale.lstm}
    preset = model_preset(named[size] if isinstance(size, str) else scale.sizes[size])
    shape = {name: getattr(preset, name) for name in _SHAPE}
    return dataclasses.replace(scale.pretraining, model=dataclasses.replace(scale.pretraining.model, **shape))


def in_order(cells: Iterable[Cell]) -> list[Work]:
    """Return the units of cells, each once, after those that it needs."""
    units: dict[str, Work] = {}

    def add(unit: Work) -> None:
        for needed in unit.needs:
            add(needed)
        units.setdefault(unit.digest, unit)

    for cell in cells:
        if cell.unit is not None:
            add(cell.unit)
    return list(units.values())
