"""Run a table: every unit that is not done, each failure recorded, the outcome written after each unit."""

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from bert_jax.errors import UserError
from bert_jax.files import RESUME, write_json, write_text, writing
from bert_jax.json_files import read_json
from bert_jax.parallel.distributed import Hosts
from bert_jax.progress import duration
from bert_jax.reproduction.cost import Costs
from bert_jax.reproduction.experiments import Table
from bert_jax.reproduction.outcome import Record, outcome
from bert_jax.reproduction.page import page
from bert_jax.reproduction.resolve import Cell, Request, Resolver, in_order
from bert_jax.reproduction.store import Store
from bert_jax.reproduction.tables import TABLES
from bert_jax.reproduction.text import as_text
from bert_jax.reproduction.work import Context, Interrupted, Work
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.runtime import FINISHED, silent
from bert_jax.runs.workdir import lock_workdir

FAILED = 1
PAGE = "tables.html"
_REASON = 300  # characters of an unexpected error


@dataclasses.dataclass(frozen=True)
class Options:
    """How tables are run: where, by which hosts, what counts as done, and whether a page is written."""

    workdir: Path
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    any_code: bool = False
    has_page: bool = True
    command: str = "the same command"


def tables_named(names: str) -> list[Table]:
    """Return the tables of `--table`: names separated by commas, or all.

    Raises:
      UserError: for a name that is not one of them.
    """
    chosen = list(TABLES) if names == "all" else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in TABLES:
            raise UserError(f"--table={names}: choose from {', '.join(TABLES)}, several separated by commas, or all")
    return [TABLES[name] for name in dict.fromkeys(chosen)]


def reproduce(tables: Sequence[Table], *, request: Request, options: Options) -> int:
    """Run what is not done of `tables`, and return the exit status: 0, 1 if a unit failed, 75 or 130 if stopped.

    Raises:
      UserError: for anything that concerns all units.
    """
    report = print if options.hosts.is_main else silent
    store = Store(options.workdir, any_code=options.any_code)
    resolver = Resolver(request)
    lock = None
    with options.hosts.main_first("workdir of the tables"):
        if options.hosts.is_main:
            with writing(f"--workdir={options.workdir}:", remedy="choose another directory"):
                store.workdir.mkdir(parents=True, exist_ok=True)
                lock = lock_workdir(store.workdir)
    cache = CompilationCache(store.workdir)
    try:
        statuses = []
        for table in tables:
            run = _TableRun(table, cells=resolver.cells(table), request=request, store=store, options=options)
            try:
                statuses.append(run.run(report))
            except Interrupted as stop:
                report(f"{table.heading}: stopped; {options.command} resumes there")
                return stop.status
        return max(statuses)
    finally:
        cache.close()
        if lock is not None:
            lock.close()


class _TableRun:
    """The run of one table."""

    def __init__(self, table: Table, *, cells: Sequence[Cell], request: Request, store: Store, options: Options):
        self._table, self._cells, self._request, self._store = table, cells, request, store
        self._options, self._hosts = options, options.hosts
        self._failed: set[str] = set()

    def run(self, report: Callable[[str], None]) -> int:
        """Run what is not done and return the status."""
        units = in_order(self._cells)
        costs = Costs(self._store, stated=self._request.scale.flops_per_second)
        is_done = self._hosts.from_main("units done", lambda: [self._is_done(unit) for unit in units])
        todo = [unit for unit, done in zip(units, is_done, strict=True) if not done]
        report(f"{self._table.heading}: {len(units)} runs, {len(units) - len(todo)} of them done")
        self._write()
        for number, unit in enumerate(todo, start=1):
            if any(needed.digest in self._failed for needed in unit.needs):
                self._failed.add(unit.digest)
                continue
            left = time_left(todo[number - 1 :], costs=costs)
            report(f"== {self._table.heading}, run {number} of {len(todo)}: {unit.title}; {left}")
            self._run_unit(unit, report)
            self._write()
        record = self._write()
        report(as_text(record))
        if self._options.has_page:
            report(f"page: {self._store.workdir / PAGE}")
        return FAILED if self._failed else FINISHED

    def _run_unit(self, unit: Work, report: Callable[[str], None]) -> None:
        context = Context(self._store.folder, self._hosts, report, self._options.command)
        with self._hosts.main_first("unit begins"):
            folder = self._store.begin(unit) if self._hosts.is_main else self._store.folder(unit)
        start = time.monotonic()
        try:
            unit.run(folder, context=context)
            if self._hosts.is_main:
                self._store.finish(unit, seconds=time.monotonic() - start)
        except Interrupted:
            raise
        except Exception as error:
            if self._hosts.count > 1:  # the other hosts cannot know of it: the command ends, on all of them
                raise
            reason = _reason(error)
            if not isinstance(error, UserError):
                write_text(folder / "error.txt", traceback.format_exc())
                reason += f" (traceback in {folder / 'error.txt'})"
            self._store.fail(unit, reason)
            self._failed.add(unit.digest)
            report(f"failed: {unit.title}: {reason}; the other runs continue")
        finally:
            jax.clear_caches()  # else the programs of all runs stay in memory

    def _is_done(self, unit: Work) -> bool:
        return self._store.result(unit) is not None

    def _write(self) -> Record:
        """Write the outcome so far, on host 0: table_5.json, table_5.txt and the page of all tables in the workdir."""
        record = outcome(self._table, cells=self._cells, request=self._request, store=self._store)
        if not self._hosts.is_main:
            return record
        workdir = self._store.workdir
        name = file_name(self._table)
        with writing(workdir, remedy=RESUME):
            write_json(workdir / f"{name}.json", record)
            write_text(workdir / f"{name}.txt", as_text(record) + "\n")
            if self._options.has_page:
                files = [workdir / f"{file_name(table)}.json" for table in TABLES.values()]
                write_text(workdir / PAGE, page([read_json(file) for file in files if file.is_file()]))
        return record


def file_name(table: Table) -> str:
    """Return the name of a table's files: table_5, figure_5."""
    return table.heading.lower().replace(" ", "_")


def time_left(units: Sequence[Work], *, costs: Costs) -> str:
    """Return what the units still cost, in words."""
    seconds = [costs.remaining(unit).seconds for unit in units]
    known = sum(value for value in seconds if value is not None)
    if not known:
        return "the time is unknown until a run has measured it"
    return (
        f"about {duration(seconds[0])}, {duration(known)} left in all"
        if seconds[0]
        else (f"{duration(known)} left in all")
    )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:_REASON]}"
