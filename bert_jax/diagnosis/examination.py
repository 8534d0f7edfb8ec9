"""Run checks one after the other, on one host or several; what one finds does not depend on whether another crashed."""

import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_jax.diagnosis import collectives, devices, kernels, resume, training_step, versions
from bert_jax.diagnosis.children import ChildFailed
from bert_jax.diagnosis.report import as_block, verdict_line
from bert_jax.diagnosis.results import CheckResult, Context, Verdict, failed, skipped
from bert_jax.errors import UserError
from bert_jax.files import write_text, writing
from bert_jax.json_files import parse_json
from bert_jax.parallel.distributed import Hosts
from bert_jax.progress import duration

INTERRUPTED = 130  # the exit status after Ctrl-C
_REASON = 300  # characters of an error


@dataclasses.dataclass(frozen=True)
class Check:
    """One check; `seconds` is what it typically takes, for the estimate of the time left."""

    name: str
    about: str
    run: Callable[[Context], CheckResult]
    seconds: float
    spans_hosts: bool = False  # its computation needs all hosts: where it crashes on one, the others would wait


# In this order: runs in processes of their own come before this one takes the devices.
CHECKS = (
    Check("versions", "what is installed", versions.check, seconds=2),
    Check("resume", "a run is killed and resumed", resume.check, seconds=90),
    Check("devices", "what jax computes on", devices.check, seconds=15),
    Check("kernels", "kernels against plain forms", kernels.check, seconds=60),
    Check("collectives", "bandwidth between devices", collectives.check, seconds=30, spans_hosts=True),
    Check("step", "a training step against its projection", training_step.check, seconds=200, spans_hosts=True),
)


class Crashed(UserError):
    """A check over all hosts that crashed on this one; the command cannot continue."""


def choose(names: Sequence[str]) -> list[Check]:
    """Return the checks of these names in the order of the table, all for none.

    Raises:
      UserError: for an unknown name.
    """
    known = {check.name: check for check in CHECKS}
    for name in names:
        if name not in known:
            raise UserError(f"--checks={name}: choose from {', '.join(known)}")
    return [check for check in CHECKS if not names or check.name in names]


def examine_and_report(
    checks: Sequence[Check], *, hosts: Hosts, workdir: Path, seconds: float, out: str = "", start: float | None = None
) -> int:
    """Run `checks`, print the block on host 0 and return the exit status: 0 if nothing failed.

    `start` is when the command started, on the clock of `time.monotonic`. The block is also written to the file `out`.

    Raises:
      UserError: if a check over several hosts crashed on this one, or `out` cannot be written.
    """
    start = time.monotonic() if start is None else start
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    context = Context(hosts, workdir, start + seconds)
    results: dict[str, CheckResult] = {}
    status = 0

    def say(text: str) -> None:
        if hosts.is_main:
            print(text, file=sys.stderr, flush=True)

    try:
        examine(checks, context=context, results=results, say=say)
    except KeyboardInterrupt:
        say("interrupted: the results so far")
        status = INTERRUPTED
    finally:
        if hosts.is_main:
            block = as_block(results, when=when, took=duration(time.monotonic() - start))
            print(block, flush=True)
            if out:
                with writing(f"--out={out}", remedy="name a file in a folder that can be written to"):
                    write_text(out, block + "\n")
    return status or int(any(result.verdict is Verdict.FAILED for result in results.values()))


def examine(
    checks: Sequence[Check], *, context: Context, results: dict[str, CheckResult], say: Callable[[str], None]
) -> None:
    """Run `checks` and put what each finds into `results`, which hold what is there when this is interrupted.

    Raises:
      Crashed: if a check over several hosts crashed on this one.
    """
    for number, check in enumerate(checks):
        left = sum(later.seconds for later in checks[number:])
        say(f"[{number + 1}/{len(checks)}] {check.name}: {check.about} ({duration(left)} left)")
        start = time.monotonic()
        crash: Exception | None = None
        if context.hosts.from_main(f"time for {check.name}", lambda: context.seconds_left() > 0):
            results[check.name] = skipped("interrupted")
            results[check.name], crash = _run(check, context)
        else:
            results[check.name] = skipped("the time of --seconds is used up")
        if crash is not None and check.spans_hosts and context.hosts.count > 1:
            raise Crashed(str(crash)) from crash
        results[check.name] = of_all_hosts(check.name, results[check.name], context)
        say(f"    {verdict_line(results[check.name])} ({duration(time.monotonic() - start)})")


def _run(check: Check, context: Context) -> tuple[CheckResult, Exception | None]:
    try:
        return check.run(context), None
    except (UserError, ChildFailed) as error:
        return failed(_one_line(str(error))), error
    except Exception as error:  # whatever a broken machine raises is a line of the report
        return failed(f"the check crashed: {type(error).__name__}: {_one_line(str(error))}"), error


def of_all_hosts(name: str, result: CheckResult, context: Context) -> CheckResult:
    """Return host 0's result, failed where the check failed on any host."""
    hosts = context.hosts
    if hosts.count == 1:
        return result
    answers = hosts.exchange(hosts.numbered(f"result of {name}"), json.dumps([result.verdict.value, result.summary]))
    lines = []
    for index, (verdict, summary) in enumerate(map(parse_json, answers)):
        if index and verdict == Verdict.FAILED.value:
            lines.append(f"{hosts.name(index)}: {summary}")
    if not lines:
        return result
    summary = result.summary if result.verdict is Verdict.FAILED else lines.pop(0)
    return failed(summary, [*result.details, *lines])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_REASON]
