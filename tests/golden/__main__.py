"""Regenerate golden facts: `python -m tests.golden --write [losses|programs] [NAME...]`; then look at the diff.

Without a kind both. `--all` adds the larger table of programs. Facts are written as they come, so a run that is stopped
keeps what it has. Programs compile one after the other, BERT-Large for minutes.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_jax.files import write_text
from bert_jax.progress import duration
from tests.golden import children, finetuning, pretraining, records, tables

DRAWS = 2


def main() -> int:
    """Write, and print what changed."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", nargs="?", const="both", choices=("both", "losses", "programs"), required=True)
    parser.add_argument("--all", action="store_true", help="Programs of the larger table too.")
    parser.add_argument("names", nargs="*", help="Runs or programs; default: all.")
    arguments = parser.parse_args()
    runs, programs = [*pretraining.RUNS, *finetuning.RUNS], [*tables.PROGRAMS, *tables.MORE_PROGRAMS]
    known = {"losses": runs, "programs": programs, "both": [*runs, *programs]}[arguments.write]
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"nothing is called {', '.join(unknown)}; there are: {', '.join(known)}")
    named_runs = [name for name in arguments.names if name in runs]
    named_programs = [name for name in arguments.names if name in programs]
    changes: list[str] = []
    if arguments.write != "programs" and (named_runs or not arguments.names):
        if reason := children.why_not_exact():
            print(f"not written: {reason}", file=sys.stderr)
            return 2
        changes += list(_write_losses(named_runs or runs))
    if arguments.write != "losses" and (named_programs or not arguments.names):
        changes += list(_write_programs(named_programs or (programs if arguments.all else list(tables.PROGRAMS))))
    print("\n".join(["", *changes]) if changes else "\nnothing changed")
    return 0


def _write_losses(names: Sequence[str]) -> Iterator[str]:
    results = children.measured(names, f"--draws={DRAWS}", exact=True)
    for item in _with_eta(results, count=len(names)):
        current = records.GoldenLosses.from_measured(item)
        file = records.LOSSES / f"{current.name}.json"
        before = records.read(file)
        if before is None:
            yield f"{current.name}: new"
        elif before != current.to_json():
            golden = records.read_losses(current.name)
            line = golden.difference(current.losses, batches=current.batches, exact=True)
            yield line.rpartition("; if that is meant")[0] or f"{current.name}: only its moves"
        _write(file, current.to_json())


def _write_programs(names: Sequence[str]) -> Iterator[str]:
    for item in _with_eta(children.compiled(names), count=len(names)):
        file = records.program_file(item["name"])
        before = records.read(file)
        if before is None:
            yield f"{item['name']}: new"
        elif line := records.program_difference(item["name"], golden=before, current=item["facts"]):
            yield line.rpartition("; if that is meant")[0]
        _write(file, item["facts"])


def _with_eta(results: Iterator[dict[str, Any]], *, count: int) -> Iterator[dict[str, Any]]:
    start = time.monotonic()
    for number, item in enumerate(results, start=1):
        spent = time.monotonic() - start
        left = f", ETA {duration(spent / number * (count - number))}" if number < count else ""
        print(f"{number} of {count} {item['name']} after {duration(spent)}{left}", flush=True)
        yield item


def _write(file: Path, record: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    write_text(file, records.to_text(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
