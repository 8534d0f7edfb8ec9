"""The outcome of a table: means and deviations over seeds, the paper's values beside them, as text and as a page."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bert_jax.reproduction.experiments import AVERAGE, Column, Row, Table
from bert_jax.reproduction.outcome import outcome
from bert_jax.reproduction.resolve import Cell
from bert_jax.reproduction.store import Store
from bert_jax.reproduction.text import as_text
from tests.reproduction_scale import request
from tests.test_reproduction_run import StubWork

ACCURACY = Column("sst2", "SST-2 accuracy", task="sst2", metric="accuracy")
F1 = Column("squad_f1", "SQuAD F1", task="squad_v1", metric="f1")
MEAN = Column("average", "average", kind=AVERAGE)
RESULTS: dict[str, dict[str, Any]] = {
    "base": {
        "runs": [{"metrics": {"dev": {"accuracy": value, "f1": 0.5}}} for value in (0.80, 0.82, 0.84)],
        "ensemble": {"dev": {"accuracy": 0.9, "f1": 0.55}},
    },
    "other": {"runs": [{"metrics": {"test": {"accuracy": 0.7, "f1": 0.25}}}], "ensemble": {}},
}


def make(tmp_path: Path, *, rows: tuple[Row, ...], columns: tuple[Column, ...]) -> dict[str, Any]:
    """Return the record of a table whose units have the results above."""

    class Results(Store):
        def result(self, unit: StubWork) -> dict[str, Any] | None:  # type: ignore[override]
            return RESULTS.get(unit.title)

    cells = []
    for row in rows:
        unit = StubWork(len(row.title))
        unit.title = row.model
        known = row.model in (*RESULTS, "open")
        missing = "" if known else "there is no such <model>"
        cells += [
            Cell(row, column, unit=unit if known else None, missing=missing)
            for column in columns
            if column.kind != AVERAGE
        ]
    table = Table("5", "an ablation", "5.1", columns, rows, notes=("a note",))
    return outcome(table, cells=cells, request=request(tmp_path), store=Results(tmp_path))


ROWS = (
    Row("BERT", "base", {"sst2": 92.7, "squad_f1": 88.5}),
    Row("BERT, ensemble", "base", {"sst2": 93.0}, ensemble=True),
    Row("Other", "other", {"sst2": 90.0}),
    Row("Later", "open"),
    Row("Never", "none", {"sst2": 80.0}),
)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make(tmp_path, rows=ROWS, columns=(ACCURACY, F1, MEAN))


def cells(record: dict[str, Any], title: str) -> dict[str, Any]:
    return next(row["cells"] for row in record["rows"] if row["title"] == title)


def test_a_cell_has_all_values_their_mean_and_the_deviation_of_a_sample(record: dict[str, Any]):
    entry = cells(record, "BERT")["sst2"]
    assert entry["values"] == pytest.approx([80.0, 82.0, 84.0])
    assert (entry["mean"], entry["sd"]) == pytest.approx((82.0, 2.0))
    assert entry["paper"] == 92.7
    assert cells(record, "Other")["sst2"]["sd"] is None


def test_an_ensemble_has_the_value_of_the_averaged_outputs(record: dict[str, Any]):
    assert cells(record, "BERT, ensemble")["squad_f1"]["values"] == pytest.approx([55.0])


def test_the_only_split_replaces_dev(record: dict[str, Any]):
    assert cells(record, "Other")["sst2"]["values"] == pytest.approx([70.0])


def test_an_average_is_over_the_same_columns_on_both_sides(record: dict[str, Any]):
    assert cells(record, "BERT")["average"]["mean"] == pytest.approx((82 + 50) / 2)
    assert cells(record, "BERT")["average"]["paper"] == pytest.approx((92.7 + 88.5) / 2)
    assert cells(record, "Other")["average"]["paper"] == pytest.approx(90.0)
    assert cells(record, "Later")["average"]["state"] == "open"


def test_states_and_reasons_are_kept(record: dict[str, Any]):
    assert cells(record, "Later")["sst2"]["state"] == "open"
    assert cells(record, "Never")["sst2"] == {
        "paper": 80.0,
        "state": "missing",
        "values": [],
        "reason": "there is no such <model>",
    }
    assert (record["open"], record["failed"]) == (3, 0)


def test_the_text_shows_both_sides_and_says_what_is_missing(record: dict[str, Any]):
    lines = as_text(record).splitlines()
    assert lines[0] == "Table 5, an ablation (paper, section 5.1), at scale few"
    assert re.search(r"^BERT +92\.7 +82\.0 ± 2\.0 +88\.5 +50\.0 ± 0\.0 +90\.6 +66\.0$", lines[3])
    assert re.search(r"^Later +- +open +- +open +- +open$", lines[6])
    assert "missing: Never (sst2, squad_f1): there is no such <model>" in lines
    assert {"note: a note", "note: twenty steps", "sst2 is measured in place of mnli"} <= set(lines)


def test_the_page_is_one_file_with_plots_whose_text_is_escaped(record: dict[str, Any]):
    pytest.importorskip("matplotlib")
    from bert_jax.reproduction.page import page

    text = page([record])
    assert not re.search(r'(?:src|href)="(?!#)', text.replace("xlink:href", ""))
    assert "<script" not in text
    assert "there is no such &lt;model&gt;" in text
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 2  # values, and differences to the first row
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "82.0 ± 2.0" in text
    assert page([record]) == text


def test_a_figure_is_drawn_as_curves(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from bert_jax.reproduction.plots import plot

    rows = (
        Row("Masked, half", "other", {"sst2": 50.0}, curve="Masked", point=0.4),
        Row("Masked, whole", "base", {"sst2": 60.0}, curve="Masked"),
    )
    picture = plot(make(tmp_path, rows=rows, columns=(ACCURACY,)))
    assert "Masked, paper" in picture
    assert "Masked, ours" in picture
