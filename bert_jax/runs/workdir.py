"""Keep a run's config in its workdir, and refuse a workdir that belongs to another run."""

import fcntl
import re
from pathlib import Path
from typing import IO

from bert_jax.config import Config, flatten, from_config_dict, to_json
from bert_jax.errors import UserError
from bert_jax.files import load_json, write_text

# What may change from one start of a run to the next: it changes neither the data nor, but for rounding, the result.
_FREE = re.compile(
    r"(mesh|log|profile|checkpoint|eval)\..*|data\.(num_workers|directory)|model\.(scan_layers|remat|attention_implementation)"
    r"|train\.(gradient_accumulation_steps|max_nonfinite_steps)"
)


def open_workdir(workdir: str | Path, *, config: Config) -> Path:
    """Create `workdir` if need be and write `config.json`, or check that the one there is of the same run.

    A run that came to no checkpoint has nothing to lose: its config may be mended.

    Raises:
      UserError: if the directory cannot be written, or belongs to another config; the line names fields and both
      values.
    """
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "config.json").exists() and any((path / "checkpoints").glob("[0-9]*")):
            _check_same_run(read_config(path), config, workdir=path)
        write_text(path / "config.json", to_json(config))
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}): choose another directory"
        ) from error
    return path


def lock_workdir(path: Path) -> IO[str]:
    """Keep other runs out of the workdir until the returned file is closed, or the process ends.

    Raises:
      UserError: if another process trains in it.
    """
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


def read_config(workdir: str | Path) -> Config:
    """Return the config of the run that `workdir` belongs to.

    Raises:
      UserError: if there is none or it cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_config_dict(load_json(path))
    except FileNotFoundError as error:
        raise UserError(f"{workdir}: not a workdir of bert_jax, it holds no config.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it, or choose another --workdir") from error


def _check_same_run(saved: Config, config: Config, *, workdir: Path) -> None:
    before, now = flatten(saved), flatten(config)
    names = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and not _FREE.fullmatch(name)
    )
    if names:
        shown = "; ".join(f"config.{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"--workdir={workdir} belongs to a run with another config ({shown}{more}): choose another --workdir, or "
            f"give the old "
            "values to resume"
        )
