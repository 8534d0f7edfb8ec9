"""What a check returns, and what it is given."""

import dataclasses
import enum
import time
from collections.abc import Sequence
from pathlib import Path

from bert_jax.parallel.distributed import Hosts


class Verdict(enum.Enum):
    """The outcome of a check. A result that is wrong has failed; one that is only slow has not."""

    OK = "ok"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The verdict, one sentence about it, and the lines of the check's section of the report."""

    verdict: Verdict
    summary: str = ""
    details: tuple[str, ...] = ()


def ok(summary: str, details: Sequence[str] = ()) -> CheckResult:
    """Return the result of a check that found nothing wrong."""
    return CheckResult(Verdict.OK, summary, tuple(details))


def failed(summary: str, details: Sequence[str] = ()) -> CheckResult:
    """Return the result of a check that found something wrong; the summary says what."""
    return CheckResult(Verdict.FAILED, summary, tuple(details))


def skipped(reason: str, details: Sequence[str] = ()) -> CheckResult:
    """Return the result of a check that could not be made."""
    return CheckResult(Verdict.SKIPPED, reason, tuple(details))


@dataclasses.dataclass(frozen=True)
class Context:
    """What every check may use.

    Attributes:
      hosts: the hosts that run the same command.
      workdir: an existing folder for the files of checks; its disk is the one that is reported.
      deadline: when the time of the whole command ends, on the clock of `time.monotonic`.
    """

    hosts: Hosts
    workdir: Path
    deadline: float

    def seconds_left(self) -> float:
        """Return what is left of the command's time."""
        return self.deadline - time.monotonic()
