"""The outcome of a table: the values of all seeds of each cell, next to the paper's, for JSON, text and page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.reproduction.experiments import AVERAGE, TASK, Column, Row, Table
from bert_jax.reproduction.resolve import Cell, Request, columns_of, rows_of
from bert_jax.reproduction.store import Store

Record = dict[str, Any]


def outcome(table: Table, *, cells: Sequence[Cell], request: Request, store: Store) -> Record:
    """Return the record of a table, with the results that are there."""
    columns = columns_of(table, scale=request.scale)
    by_position = {(cell.row.title, cell.column.key): cell for cell in cells}
    described = {cell.row.title: " and ".join(model.describe() for model in cell.models) for cell in cells}
    rows = []
    for row in rows_of(table, scale=request.scale):
        entries = {
            column.key: _entry(by_position[row.title, column.key], store=store)
            for column in columns
            if column.kind != AVERAGE
        }
        for column in columns:
            if column.kind == AVERAGE:
                entries[column.key] = _average(entries, row=row)
        model = described.get(row.title, "")
        rows.append({"title": row.title, "model": model, "curve": row.curve, "point": row.point, "cells": entries})
    values = [entry for row in rows for entry in row["cells"].values()]
    return {
        "table": table.name,
        "heading": table.heading,
        "title": table.title,
        "section": table.section,
        "scale": request.title,
        "seeds": request.seeds,
        "columns": [_column(column) for column in columns],
        "rows": rows,
        "notes": [*table.notes, *request.scale.notes],
        "replaced": list(request.scale.replacements),
        "open": sum(entry["state"] == "open" for entry in values),
        "failed": sum(entry["state"] == "failed" for entry in values),
        "runs": _runs(cells, store=store),
    }


def _column(column: Column) -> Record:
    return {
        "key": column.key,
        "title": column.title,
        "is_lower_better": column.is_lower_better,
        "percent": column.percent,
    }


def _entry(cell: Cell, *, store: Store) -> Record:
    """Return the values of a cell, or why it has none."""
    entry: Record = {"paper": cell.row.paper.get(cell.column.key), "state": "done", "values": [], "reason": ""}
    if cell.unit is None:
        return entry | {"state": "missing", "reason": cell.missing}
    entry["run"] = store.folder(cell.unit).name
    result = store.result(cell.unit)
    if result is None:
        reason = next((text for unit in (cell.unit, *cell.unit.needs) if (text := store.failure(unit))), "")
        return entry | {"state": "failed" if reason else "open", "reason": reason}
    values = [value * cell.column.factor for value in _values(result, cell=cell)]
    if not values:
        return entry | {"state": "missing", "reason": f"the run has no metric {cell.column.metric}"}
    return entry | {"values": values, **_summary(values)}


def _values(result: Mapping[str, Any], *, cell: Cell) -> list[float]:
    column = cell.column
    if column.kind != TASK:
        value = result["metrics"].get(column.metric)
        return [] if value is None else [value]
    splits = [result["ensemble"]] if cell.row.ensemble else [run["metrics"] for run in result["runs"]]
    metrics = [_split(of_run, column.split) for of_run in splits]
    return [of_split[column.metric] for of_split in metrics if column.metric in of_split]


def _split(metrics: Mapping[str, Any], name: str) -> Mapping[str, float]:
    """Return the metrics of a split; a part of train or test that replaces dev has another name."""
    if name in metrics or not name.startswith("dev"):
        return metrics.get(name, {})
    return next(iter(metrics.values()), {})


def _summary(values: Sequence[float]) -> Record:
    """Return mean and standard deviation (of a sample; none for one value)."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def _average(entries: Mapping[str, Record], *, row: Row) -> Record:
    """Return the average of the cells with values, and of the paper's values of the same columns."""
    there = [key for key, entry in entries.items() if entry["values"]]
    paper = [row.paper[key] for key in there or entries if key in row.paper]
    entry: Record = {"paper": statistics.fmean(paper) if paper else None, "values": [], "reason": "", "of": there}
    states = {cell["state"] for cell in entries.values()}
    if not there:
        state = next(state for state in ("failed", "open", "missing") if state in states)
        return entry | {"state": "missing" if state == "missing" else "open"}
    mean = statistics.fmean(entries[key]["mean"] for key in there)
    return entry | {"state": "open" if "open" in states else "done", "values": [mean], "mean": mean, "sd": None}


def _runs(cells: Sequence[Cell], *, store: Store) -> list[Record]:
    """Return the runs that the cells read, once each."""
    runs: dict[str, Record] = {}
    for cell in cells:
        for unit in () if cell.unit is None else (*cell.unit.needs, cell.unit):
            folder = store.folder(unit).name
            code = store.code_of(unit)
            runs[folder] = {
                "folder": folder,
                "title": unit.title,
                "kind": unit.kind,
                "is_done": store.result(unit) is not None,
                "code": code,
                "is_other_code": code != unit.code,
            }
    return list(runs.values())
