"""Commands of the package in processes of their own: what may not share the devices, or is to be killed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import bert_jax

_REASON = 200  # characters of a child's last line


class ChildFailed(Exception):
    """A child that ended with an error or took too long."""


@contextlib.contextmanager
def running(
    arguments: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Yield the process of `python -m ARGUMENTS`, which is killed when the body ends; errors are appended to `log`.

    Its standard output goes to the file `log` with the ending `.out`.
    """
    root = str(Path(bert_jax.__file__).parents[1])  # a checkout need not be installed
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("ab") as errors, output_of(log).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def run(arguments: Sequence[str], *, log: Path, seconds: float, environment: Mapping[str, str] | None = None) -> None:
    """Run `python -m ARGUMENTS` to its end; its output as of `running`.

    Raises:
      ChildFailed: if it ends with an error, with its last line, or takes longer than `seconds`.
    """
    with running(arguments, log=log, environment=environment) as process:
        try:
            process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            raise ChildFailed(
                f"{arguments[0]} took longer than the {seconds:.0f} s that were left (--seconds gives more)"
            ) from None
        if process.returncode:
            raise ChildFailed(f"{arguments[0]} ended with status {process.returncode}: {last_line(log)}")


def output_of(log: Path) -> Path:
    """Return the file of a child's standard output."""
    return log.with_suffix(".out")


def last_line(log: Path) -> str:
    """Return the last line of a child's errors that is not empty, else that of its output."""
    for file in (log, output_of(log)):
        lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "")
        if last:
            return last[:_REASON]
    return "no output"
