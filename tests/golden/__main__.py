"""Regenerate golden facts: `python -m tests.golden --write [losses|programs] [NAME...]`; then look at the diff.

Without a kind both. `--all` adds the larger table of programs. Facts are written as they come, so a run that is stopped
keeps what it has. Losses take about 4 minutes of one core, programs 8 of two.
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
    changes: list[str] = []
    if arguments.write != "programs":
        if reason := children.why_not_exact():
            print(f"not written: {reason}", file=sys.stderr)
            return 2
        changes += list(_write_losses(arguments.names or [*pretraining.RUNS, *finetuning.RUNS]))
    if arguments.write != "losses":
        programs = [*tables.PROGRAMS, *(tables.MORE_PROGRAMS if arguments.all else ())]
        changes += list(_write_programs(arguments.names or programs))
    print("\n".join(["", *changes]) if changes else "\nnothing changed")
    return 0


def _write_losses(names: Sequence[str]) -> Iterator[str]:
    found = children.measured(names, f"--draws={DRAWS}", exact=True)
    for item in _with_eta(found, count=len(names)):
        made = records.GoldenLosses.from_measured(item)
        file = records.LOSSES / f"{made.name}.json"
        before = records.read(file)
        if before is None:
            yield f"{made.name}: new"
        elif before != made.to_json():
            golden = records.read_losses(made.name)
            line = golden.difference(made.losses, batches=made.batches, exact=True)
            yield line.rpartition("; if that is meant")[0] or f"{made.name}: only its moves"
        _write(file, made.to_json())


def _write_programs(names: Sequence[str]) -> Iterator[str]:
    for item in _with_eta(children.compiled(names), count=len(names)):
        file = records.program_file(item["name"])
        before = records.read(file)
        if before is None:
            yield f"{item['name']}: new"
        elif line := records.program_difference(item["name"], golden=before, found=item["facts"]):
            yield line.rpartition("; if that is meant")[0]
        _write(file, item["facts"])


def _with_eta(found: Iterator[dict[str, Any]], *, count: int) -> Iterator[dict[str, Any]]:
    begun = time.monotonic()
    for number, item in enumerate(found, start=1):
        spent = time.monotonic() - begun
        left = f", ETA {duration(spent / number * (count - number))}" if number < count else ""
        print(f"{number} of {count} {item['name']} after {duration(spent)}{left}", flush=True)
        yield item


def _write(file: Path, record: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    write_text(file, records.to_text(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
