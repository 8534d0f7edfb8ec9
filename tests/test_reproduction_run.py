"""A table runs what is not done, survives a failed run and an interruption, and shares runs with other tables."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from bert_jax.reproduction import command
from bert_jax.reproduction.command import Options, reproduce
from bert_jax.reproduction.experiments import HELDOUT, Column, Row, Table
from bert_jax.reproduction.resolve import Cell, Request
from bert_jax.reproduction.store import Store
from bert_jax.reproduction.work import Context, Interrupted, Work
from tests.reproduction_scale import request

LOSS = Column("loss", "loss", kind=HELDOUT, metric="loss", percent=False)


class StubWork(Work):
    """A unit that writes its number, and calls `act` before: to fail, or to be interrupted."""

    kind, packages = "stub", ()

    def __init__(self, number: int, *, needs: Sequence[Work] = (), act: Callable[[], None] = lambda: None):
        self.title, self._number, self._needs, self.act = f"stub {number}", number, tuple(needs), act
        self.runs = 0

    @property
    def needs(self) -> tuple[Work, ...]:
        return self._needs

    def content(self) -> Mapping[str, Any]:
        return {"number": self._number}

    def flops(self) -> float:
        return 100.0

    def done_fraction(self, folder: Path) -> float:
        return 0.5 if (folder / "half").exists() else 0.0

    def run(self, folder: Path, *, context: Context) -> None:
        self.runs += 1
        (folder / "half").touch()
        assert all((context.folder_of(unit) / "done.json").exists() for unit in self.needs)
        self.act()

    def result(self, folder: Path) -> dict[str, Any]:
        return {"metrics": {"loss": float(self._number)}}


def table_of(name: str, units: Sequence[Work]) -> tuple[Table, list[Cell]]:
    """Return a table with a row per unit."""
    rows = tuple(Row(unit.title, "base", {"loss": 1.0}) for unit in units)
    cells = [Cell(row, LOSS, unit=unit) for row, unit in zip(rows, units, strict=True)]
    return Table(name, "stubs", "0", (LOSS,), rows), cells


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run tables of units in one workdir."""

    class Resolver:
        def __init__(self, request: Request):
            del request

        def cells(self, table: Table) -> list[Cell]:
            return tables[table.name]

    tables: dict[str, list[Cell]] = {}
    monkeypatch.setattr(command, "Resolver", Resolver)

    def run_tables(*of_units: Sequence[Work], any_code: bool = False) -> int:
        chosen = []
        for name, units in zip(("5", "6"), of_units, strict=False):
            table, tables[name] = table_of(name, units)
            chosen.append(table)
        options = Options(tmp_path / "w", any_code=any_code, has_page=False, command="the command")
        return reproduce(chosen, request=request(tmp_path), options=options)

    return run_tables


def fail(message: str) -> Callable[[], None]:
    def act() -> None:
        raise UserError(message)

    return act


def record(tmp_path: Path, name: str = "table_5") -> dict[str, Any]:
    return json.loads((tmp_path / "w" / f"{name}.json").read_text())


def states(tmp_path: Path) -> list[str]:
    return [row["cells"]["loss"]["state"] for row in record(tmp_path)["rows"]]


def test_what_is_done_is_not_run_again(run: Callable[..., int], tmp_path: Path):
    units = [StubWork(1), StubWork(2)]
    assert run(units) == 0
    assert run(units) == 0
    assert [unit.runs for unit in units] == [1, 1]
    values = [row["cells"]["loss"]["values"] for row in record(tmp_path)["rows"]]
    assert values == [[1.0], [2.0]]


def test_tables_share_a_unit_that_both_need(run: Callable[..., int], tmp_path: Path):
    model = StubWork(1)
    same = StubWork(1)
    first, second = StubWork(2, needs=[model]), StubWork(3, needs=[same])
    assert run([first], [second]) == 0
    assert (model.runs, same.runs) == (1, 0)
    assert record(tmp_path, "table_6")["runs"][0]["folder"] == model.digest


def test_a_failed_run_does_not_lose_the_others(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = StubWork(1, act=fail("lower the learning rate"))
    dependent, other = StubWork(2, needs=[broken]), StubWork(3)
    assert run([broken, dependent, other]) == 1
    assert states(tmp_path) == ["failed", "failed", "done"]
    assert dependent.runs == 0
    assert "failed: stub 1, stub 2 (loss): lower the learning rate" in capsys.readouterr().out
    index = (tmp_path / "w" / "runs" / "index.txt").read_text()
    assert f"{broken.digest}  failed" in index
    assert "lower the learning rate" in index


def test_a_failed_run_is_tried_again(run: Callable[..., int], tmp_path: Path):
    broken = StubWork(1, act=fail("the disk is full"))
    dependent = StubWork(2, needs=[broken])
    assert run([broken, dependent]) == 1
    broken.act = lambda: None
    assert run([broken, dependent]) == 0
    assert (broken.runs, dependent.runs) == (2, 1)
    assert states(tmp_path) == ["done", "done"]


def test_an_unexpected_error_is_one_line_with_its_traceback_in_a_file(run: Callable[..., int], tmp_path: Path):
    def act() -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out\nof memory")

    broken = StubWork(1, act=act)
    assert run([broken, StubWork(2)]) == 1
    folder = tmp_path / "w" / "runs" / broken.digest
    reason = json.loads((folder / "failed.json").read_text())["reason"]
    assert reason.startswith("RuntimeError: RESOURCE_EXHAUSTED: out of memory (traceback in ")
    assert "Traceback" in (folder / "error.txt").read_text()
    assert states(tmp_path) == ["failed", "done"]


def test_a_stop_keeps_what_is_done_and_the_same_command_resumes(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def act() -> None:
        raise Interrupted(130)

    units = [StubWork(1), StubWork(2, act=act), StubWork(3)]
    assert run(units) == 130
    assert states(tmp_path) == ["done", "open", "open"]
    assert "the command resumes there" in capsys.readouterr().out
    units[1].act = lambda: None
    assert run(units) == 0
    assert [unit.runs for unit in units] == [1, 2, 1]


def test_runs_of_other_code_count_only_on_request_and_are_named(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run([StubWork(1)]) == 0
    monkeypatch.setattr("bert_jax.reproduction.work.code_digest", lambda packages: "newer")
    again, counted = StubWork(1), StubWork(1)
    assert run([counted], any_code=True) == 0
    assert counted.runs == 0
    assert "begun with another version of the code: stub 1" in (tmp_path / "w" / "table_5.txt").read_text()
    assert run([again]) == 0
    assert again.runs == 1


def test_one_process_at_a_time_runs_tables_in_a_workdir(run: Callable[..., int], tmp_path: Path):
    def act() -> None:
        run([StubWork(2)])

    assert run([StubWork(1, act=act)]) == 1
    assert "another process trains in it" in record(tmp_path)["rows"][0]["cells"]["loss"]["reason"]


def test_the_time_left_is_said_once_a_run_has_been_measured(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(StubWork, "seconds", lambda self, folder: 120.0)
    run([StubWork(1), StubWork(2), StubWork(3)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]
    assert lines == [
        "== Table 5, run 1 of 3: stub 1; the time is unknown until a run has measured it",
        "== Table 5, run 2 of 3: stub 2; about 2 min 00 s, 4 min 00 s left in all",
        "== Table 5, run 3 of 3: stub 3; about 2 min 00 s, 2 min 00 s left in all",
    ]


def test_a_damaged_record_is_a_run_that_is_not_done(run: Callable[..., int], tmp_path: Path):
    unit = StubWork(1)
    run([unit])
    (Store(tmp_path / "w").folder(unit) / "done.json").write_text("{")
    assert run([unit]) == 0
    assert unit.runs == 2
