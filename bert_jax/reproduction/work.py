"""A unit of work: a data set, a pre-training run, the fine-tuning runs of a cell, a scoring of minimal pairs.

A unit is identified by its content: config, data, the units that it needs, and the code that computes it. So a table
resumes where it was stopped, and two tables share what they have in common.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import flatten
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.reproduction.code import code_digest

_DIGITS = 12


class Interrupted(Exception):
    """The exception for a request to stop: the state is saved; `status` is the exit status."""

    def __init__(self, status: int):
        super().__init__(f"stopped with exit status {status}")
        self.status = status


@dataclasses.dataclass(frozen=True)
class Context:
    """What units share while they run: where the others are, the hosts, and what to type to resume."""

    folder_of: Callable[["Work"], Path]
    hosts: Hosts
    report: Callable[[str], None]
    command: str = "the same command"


class Work(abc.ABC):
    """A unit of work.

    Attributes:
      kind: what it is, in messages and records.
      group: units of one group run at about the same speed.
      packages: folders of the package whose code determines the result.
      title: its name in messages.
    """

    kind: str
    packages: tuple[str, ...]
    title: str

    @property
    def group(self) -> str:
        """Return the kind; units of one group run at about the same speed."""
        return self.kind

    @property
    @abc.abstractmethod
    def needs(self) -> "tuple[Work, ...]":
        """Return the units whose results this one starts from."""

    @abc.abstractmethod
    def content(self) -> Mapping[str, Any]:
        """Return config and data, as JSON values, as far as they determine the result."""

    @abc.abstractmethod
    def flops(self) -> float:
        """Return an estimate of the floating-point operations, 0 if they do not determine the time."""

    @abc.abstractmethod
    def done_fraction(self, folder: Path) -> float:
        """Return the fraction that is done in `folder`."""

    @abc.abstractmethod
    def run(self, folder: Path, *, context: Context) -> None:
        """Run to the end in `folder`, or resume there; every host calls this.

        Raises:
          Interrupted: if the user asked to stop.
          UserError: for anything the user can fix.
        """

    @abc.abstractmethod
    def result(self, folder: Path) -> dict[str, Any]:
        """Return the result of the finished unit."""

    def covers(self, result: Mapping[str, Any]) -> bool:
        """Return whether a recorded result has all that is asked for now."""
        del result
        return True

    def seconds(self, folder: Path) -> float:
        """Return the seconds that the unit has run, as far as they are recorded; 0 if they are not."""
        del folder
        return 0.0

    @functools.cached_property
    def identity(self) -> str:
        """Return the digest of config, data and needs, without code."""
        return _digest({"kind": self.kind, **self.content(), "needs": [unit.identity for unit in self.needs]})

    @property
    def code(self) -> str:
        """Return the digest of the code."""
        return code_digest(self.packages)

    @functools.cached_property
    def digest(self) -> str:
        """Return the digest of everything, the name of the unit's folder."""
        return _digest({"identity": self.identity, "code": self.code, "needs": [unit.digest for unit in self.needs]})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def determining(config: Any, *, free: re.Pattern[str]) -> dict[str, Any]:
    """Return the fields of a config by dotted name, without those that do not determine the result."""
    return {name: value for name, value in flatten(config).items() if not free.fullmatch(name)}


def file_digest(file: Path) -> str:
    """Return the digest of a file.

    Raises:
      UserError: if it does not exist.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file: put it there, or do without the rows that need it")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
