"""Config files by name, from any folder, and the workdir of a run that names none."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "configs"  # in a clone and in an installed package


def split(value: str) -> tuple[str, str]:
    """Return the file and the argument of `FILE[:argument]`; the argument is empty if there is none."""
    file, _, argument = value.partition(":")
    return file, argument


def find(value: str) -> str:
    """Return `FILE[:argument]` with the path of the file: as it is typed, else in the package's folder `configs`.

    A file that exists in neither place is returned as it is typed.
    """
    file, argument = split(value)
    path = Path(file)
    if file and not path.is_file() and not path.is_absolute() and path.parts[0] == FOLDER.name:
        packaged = FOLDER.joinpath(*path.parts[1:])
        if packaged.is_file():
            return f"{packaged}:{argument}" if argument else str(packaged)
    return value


def packaged(file: str) -> str:
    """Return the packaged config file that a name without folder or `.py` means, "" if there is none."""
    name = f"{FOLDER.name}/{Path(file).stem}.py"
    return name if Path(file).parent.name in ("", FOLDER.name) and name in names() else ""


def load(config: str | Path | ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as nested dictionaries: that of a ConfigDict, or of `FILE[:argument]`.

    Raises:
      UserError: if there is no such file.
    """
    if isinstance(config, ConfigDict):
        return config.to_dict()
    if isinstance(config, Mapping):
        return dict(config)
    file, argument = split(find(str(config)))
    if not Path(file).is_file():
        raise UserError(f"config {str(config)!r}: there is no file {file!r}; choose one of {', '.join(names())}")
    get_config = runpy.run_path(file)["get_config"]
    return (get_config(argument) if argument else get_config()).to_dict()


def default_workdir(value: str) -> str:
    """Return the workdir of a command without `--workdir`: `runs/` and the name of its config `FILE[:argument]`."""
    file, argument = split(value)
    name = Path(file).stem + (f"-{argument.replace('/', '-')}" if argument else "")
    return f"runs/{name}"


def names() -> list[str]:
    """Return the packaged config files, as `--config` takes them."""
    return sorted(f"{FOLDER.name}/{path.name}" for path in FOLDER.glob("*.py") if path.stem != "__init__")
