"""The workdir of a run: its config, its lock, and the check that it does not belong to another run."""

import dataclasses
import fcntl
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from bert_jax.config import flatten, to_json
from bert_jax.errors import UserError
from bert_jax.files import SUFFIX, write_text
from bert_jax.json_files import load_json
from bert_jax.locations import local_path

CONFIG = "config.json"
_LOCK = ".lock"
_PARTIAL = [f"{folder}.*{SUFFIX}" for folder in ("", "runs/*/", "*/runs/*/")]


@dataclasses.dataclass(frozen=True)
class SameRun:
    """The definition of the same run, for two starts in one workdir.

    Attributes:
      command: what the command does, for errors.
      read: returns the config of a config.json, or raises `UserError`.
      free: matches the fields that may change between starts: they change neither the data nor, except for rounding,
        the result.
      has_begun: returns whether a workdir contains results of its config; before that, the config may change.
      extends: given a workdir and the flat configs before and now, returns whether a finished run gets more steps.
      remedy: what to type to use another config, for errors; "{workdir}" stands for the workdir.
    """

    command: str
    read: Callable[[Mapping[str, Any]], Any]
    free: re.Pattern[str]
    has_begun: Callable[[Path], bool]
    extends: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], bool] = lambda workdir, before, now: False
    remedy: str = "choose another --workdir"


UNUSED = (CONFIG, _LOCK)  # all that a workdir has before anything is done in it


def open_workdir(workdir: str | Path, *, config: Any, same_run: SameRun) -> IO[str]:
    """Create `workdir` if necessary and write `config.json`, or check that an existing one describes the same run.

    The workdir is locked until the returned file is closed or the process ends.

    Raises:
      UserError: if another process trains there, the directory cannot be written, or it belongs to another config; the
        message gives fields with both values.
    """
    path = local_path(workdir, name="--workdir").absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = lock_workdir(path)
    except OSError as error:
        raise _cannot_be_written(workdir, error) from error
    try:
        for pattern in _PARTIAL:  # left by killed processes: this one holds the lock
            for partial in path.glob(pattern):
                partial.unlink(missing_ok=True)
        if (path / CONFIG).exists() and same_run.has_begun(path):
            _check_same_run(config, workdir=path, same_run=same_run)
        save_config(path, config)
    except OSError as error:
        lock.close()
        raise _cannot_be_written(workdir, error) from error
    except BaseException:
        lock.close()
        raise
    return lock


def save_config(workdir: Path, config: Any) -> None:
    """Write `config.json` of a workdir that this process has locked."""
    write_text(workdir / CONFIG, to_json(config))


def _cannot_be_written(workdir: str | Path, error: OSError) -> UserError:
    return UserError(f"--workdir={workdir}: cannot be written ({error.strerror or error}): choose another directory")


def lock_workdir(path: Path) -> IO[str]:
    """Lock a workdir until the returned file is closed or the process ends.

    Raises:
      UserError: if another process has locked it.
      OSError: if the lock cannot be written.
    """
    file = (path / _LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"--workdir={path}: another process trains in it: wait until it ends, or choose another --workdir"
        ) from error
    except OSError:  # the file system does not support locks
        pass
    return file


def read_config(workdir: str | Path, *, read: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Return the config of the run in `workdir`.

    Raises:
      UserError: if it does not exist or cannot be read.
    """
    path = Path(workdir) / CONFIG
    try:
        return read(load_json(path, form=dict[str, Any]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{workdir}: not a workdir of bert_jax: it contains no config.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it, or choose another --workdir") from error


def _check_same_run(config: Any, *, workdir: Path, same_run: SameRun) -> None:
    try:
        before = flatten(read_config(workdir, read=same_run.read))
    except UserError as error:
        raise UserError(
            f"--workdir={workdir} does not belong to {same_run.command}: choose another --workdir ({error})"
        ) from error
    now = flatten(config)
    # Options that only one side has follow from other fields that differ: a task, a kind.
    shared = sorted(before.keys() & now.keys())
    names = [name for name in shared if before[name] != now[name] and not same_run.free.fullmatch(name)]
    if names and same_run.extends(workdir, {name: before[name] for name in names}, {name: now[name] for name in names}):
        (workdir / f"config.{max(_steps(workdir), default=0)}.json").write_bytes((workdir / CONFIG).read_bytes())
        return
    if names:
        shown = "; ".join(f"config.{name} was {before[name]!r}, is {now[name]!r}" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"--workdir={workdir} belongs to a run with another config ({shown}{more}): "
            f"{same_run.remedy.format(workdir=workdir)}, or type the old values to resume"
        )


def finished_with_fewer_steps(workdir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the configs differ in train.num_steps only, which grew, and the run has reached its old end."""
    name = "train.num_steps"
    return before.keys() == {name} and before[name] < now[name] and before[name] in _steps(workdir)


def _steps(workdir: Path) -> list[int]:
    return [int(folder.name) for folder in workdir.glob("checkpoints/[0-9]*") if folder.name.isdecimal()]
