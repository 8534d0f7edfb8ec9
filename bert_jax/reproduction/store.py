"""The folders of units in a workdir: WORKDIR/runs/DIGEST, each with a record of what it is, and an index to read.

runs/index.txt            a line per unit: digest, state, seconds, what it is
runs/DIGEST/unit.json     what the unit is: kind, title, digests, config, the units that it needs
runs/DIGEST/done.json     its result, once it is finished
runs/DIGEST/failed.json   the reason in one line, if the last attempt failed
"""

import contextlib
import datetime
import sys
from pathlib import Path
from typing import Any

import jax

from bert_jax.files import RESUME, write_json, write_text, writing
from bert_jax.json_files import load_json
from bert_jax.progress import duration
from bert_jax.reproduction.work import Work

RUNS, UNIT, DONE, FAILED, INDEX = "runs", "unit.json", "done.json", "failed.json", "index.txt"


class Store:
    """The units in a workdir. With `any_code`, those that another version of the code made count too."""

    def __init__(self, workdir: Path, *, any_code: bool = False):
        self.workdir = workdir.absolute()
        self._any_code = any_code

    def folder(self, unit: Work) -> Path:
        """Return the folder of a unit."""
        own = self.workdir / RUNS / unit.digest
        if not self._any_code or own.exists():
            return own
        others = [path for path, record in self._records() if record.get("identity") == unit.identity]
        # A finished one first, then the newest.
        return max(others, key=lambda path: ((path / DONE).exists(), path.stat().st_mtime), default=own)

    def result(self, unit: Work) -> dict[str, Any] | None:
        """Return the result of a unit, None if it is not finished."""
        record = _read(self.folder(unit) / DONE)
        if "result" not in record or not unit.covers(record["result"]):
            return None
        return record["result"]

    def failure(self, unit: Work) -> str:
        """Return why the last attempt failed, or an empty string."""
        return str(_read(self.folder(unit) / FAILED).get("reason", ""))

    def code_of(self, unit: Work) -> str:
        """Return the digest of the code that a unit was begun with, or that of this code."""
        return str(_read(self.folder(unit) / UNIT).get("code", unit.code))

    def begin(self, unit: Work) -> Path:
        """Return the folder of a unit that is to run, with its record."""
        folder = self.folder(unit)
        with writing(folder, remedy=RESUME):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILED).unlink(missing_ok=True)
            if not (folder / UNIT).exists():
                write_json(folder / UNIT, self._describe(unit))
            self._write_index()
        return folder

    def finish(self, unit: Work, *, seconds: float) -> None:
        """Record the result of a unit that ran for `seconds`, unless it has recorded its seconds itself."""
        folder = self.folder(unit)
        record = {
            "result": unit.result(folder),
            "seconds": unit.seconds(folder) or seconds,
            "flops": unit.flops(),
            "group": unit.group,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "jax": jax.__version__,
            "python": sys.version.partition(" ")[0],
        }
        with writing(folder, remedy=RESUME):
            write_json(folder / DONE, record)
            self._write_index()

    def fail(self, unit: Work, reason: str) -> None:
        """Record why a unit failed."""
        folder = self.folder(unit)
        with writing(folder, remedy=RESUME):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FAILED, {"reason": reason})
            self._write_index()

    def measured(self) -> dict[str, list[tuple[float, float]]]:
        """Return FLOPs and seconds of the finished units, by group."""
        speeds: dict[str, list[tuple[float, float]]] = {}
        for path in sorted((self.workdir / RUNS).glob(f"*/{DONE}")):
            record = _read(path)
            if record.get("flops") and record.get("seconds"):
                speeds.setdefault(str(record["group"]), []).append((record["flops"], record["seconds"]))
        return speeds

    def _describe(self, unit: Work) -> dict[str, Any]:
        return {
            "kind": unit.kind,
            "title": unit.title,
            "digest": unit.digest,
            "identity": unit.identity,
            "code": unit.code,
            "needs": [self.folder(needed).name for needed in unit.needs],
            **unit.content(),
        }

    def _records(self) -> list[tuple[Path, dict[str, Any]]]:
        return [(path.parent, _read(path)) for path in sorted((self.workdir / RUNS).glob(f"*/{UNIT}"))]

    def _write_index(self) -> None:
        lines = []
        for path, record in self._records():
            done, failed = _read(path / DONE), _read(path / FAILED)
            state = "failed" if failed else "done" if done else "begun"
            seconds = duration(done["seconds"]) if done.get("seconds") else ""
            lines.append(f"{path.name}  {state:<6}  {seconds:>12}  {record.get('title', '')}")
            if failed:
                lines.append(f"{'':14}{failed.get('reason', '')}")
        write_text(self.workdir / RUNS / INDEX, "".join(f"{line}\n" for line in lines))


def _read(file: Path) -> dict[str, Any]:
    """Return a record, empty if there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        return load_json(file, form=dict[str, Any])
    return {}
