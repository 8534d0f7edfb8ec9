"""Keep a run's config in its workdir, refuse a workdir that belongs to another run, and keep other commands out."""

import dataclasses
import fcntl
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from bert_jax.config import flatten, to_json
from bert_jax.errors import UserError
from bert_jax.files import SUFFIX, load_json, write_text

CONFIG = "config.json"
_PARTIAL = [f"{folder}.*{SUFFIX}" for folder in ("", "runs/*/", "*/runs/*/")]


@dataclasses.dataclass(frozen=True)
class SameRun:
    """What makes two starts in one workdir the same run.

    Attributes:
      command: what the command does, for error lines.
      read: returns the config that a config.json holds, or raises `UserError`.
      free: matches the names of fields that may change from one start to the next: they change neither the data nor,
        but for rounding, the result.
      has_begun: returns whether a workdir holds something that its config binds; before, its config may be corrected.
    """

    command: str
    read: Callable[[Mapping[str, Any]], Any]
    free: re.Pattern[str]
    has_begun: Callable[[Path], bool]


def open_workdir(workdir: str | Path, *, config: Any, same_run: SameRun) -> IO[str]:
    """Create `workdir` if need be and write `config.json`, or check that the one there is of the same run.

    Other commands are kept out until the returned file is closed, or the process ends.

    Raises:
      UserError: if another process trains there, the directory cannot be written, or belongs to another config; the
        line names fields and both values.
    """
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise _cannot_be_written(workdir, error) from error
    try:
        for pattern in _PARTIAL:  # of killed processes: this one holds the lock
            for left in path.glob(pattern):
                left.unlink(missing_ok=True)
        if (path / CONFIG).exists() and same_run.has_begun(path):
            _check_same_run(config, workdir=path, same_run=same_run)
        write_text(path / CONFIG, to_json(config))
    except OSError as error:
        lock.close()
        raise _cannot_be_written(workdir, error) from error
    except BaseException:
        lock.close()
        raise
    return lock


def _cannot_be_written(workdir: str | Path, error: OSError) -> UserError:
    return UserError(f"--workdir={workdir}: cannot be written ({error.strerror or error}): choose another directory")


def _lock(path: Path) -> IO[str]:
    file = (path / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"--workdir={path}: another process trains in it: wait for that one, or choose another --workdir"
        ) from error
    except OSError:  # a file system without locks
        pass
    return file


def read_config(workdir: str | Path, *, read: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Return the config of the run that `workdir` belongs to.

    Raises:
      UserError: if there is none or it cannot be read.
    """
    path = Path(workdir) / CONFIG
    try:
        return read(load_json(path))
    except FileNotFoundError as error:
        raise UserError(f"{workdir}: not a workdir of bert_jax, it holds no config.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it, or choose another --workdir") from error


def _check_same_run(config: Any, *, workdir: Path, same_run: SameRun) -> None:
    try:
        before = flatten(read_config(workdir, read=same_run.read))
    except UserError as error:
        raise UserError(
            f"--workdir={workdir} belongs to something else than {same_run.command}: choose another ({error})"
        ) from error
    now = flatten(config)
    # Options that one side alone has follow from fields that differ too: a task, a kind.
    shared = sorted(before.keys() & now.keys())
    names = [name for name in shared if before[name] != now[name] and not same_run.free.fullmatch(name)]
    if names:
        shown = "; ".join(f"config.{name} was {before[name]!r}, is {now[name]!r}" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"--workdir={workdir} belongs to a run with another config ({shown}{more}): choose another --workdir, or "
            "give the old values to resume"
        )
