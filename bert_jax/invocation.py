"""How the command that runs was typed, for the commands that its messages say to type next."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = "bert-jax"


def command(name: str, *arguments: str) -> str:
    """Return a command line that starts as the running one: `bert-jax NAME ...` or `.venv/bin/python -m ...`.

    `arguments` are written as a shell reads them: quote values.
    """
    return " ".join([*_start(name, typed=_before_flags()), *arguments])


def same_command() -> str:
    """Return the running command with its flags, as it was typed."""
    return command(_name(), *map(shlex.quote, sys.argv[1:]))


def python(code: str) -> str:
    """Return the command that runs `code`, one line of Python, in the running interpreter, quoted for a shell."""
    return f"{interpreter()} -c " + (shlex.quote(code) if re.search(r'["$`\\!]', code) else f'"{code}"')


def interpreter() -> str:
    """Return how the running interpreter is typed: as it was, or `python` where that is the one of the script."""
    typed = _before_flags()
    if "-m" in typed:
        return shlex.quote(typed[0])
    program = shutil.which("python")
    return "python" if program and Path(program).parent == Path(sys.executable).parent else shlex.quote(sys.executable)


def next_steps(*commands: str) -> str:
    """Return the text that says which commands to type next, one per line."""
    return "\n    ".join(["next:", *commands])


def resumes(command: str) -> str:
    """Return what resumes a run that stopped."""
    return "the same command resumes there" + (f":\n    {command}" if command else "")


def shown(path: Path) -> str:
    """Return a path as short as it can be typed in the current folder, quoted for a shell."""
    return shlex.quote(str(relative(path)))


def relative(path: Path) -> Path:
    """Return a path as short as it can be from the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) and path != here else path


def _start(name: str, *, typed: Sequence[str]) -> list[str]:
    """Return how a command starts where the running one starts with `typed`."""
    if "-m" in typed:
        program = typed[: typed.index("-m") + 1]
        dotted = typed[len(program)] != "bert_jax"
        return [*map(shlex.quote, program), *([f"bert_jax.{name}"] if dotted else ["bert_jax", name])]
    script = next((item for item in typed if Path(item).name == SCRIPT), SCRIPT)
    installed = shutil.which(SCRIPT)
    if installed and Path(installed).resolve() == Path(script).resolve():
        script = SCRIPT
    return [shlex.quote(script), name]


def _before_flags() -> list[str]:
    """Return the words before the flags; none where this process was not started by them."""
    flags = sys.argv[1:]
    typed = sys.orig_argv[: len(sys.orig_argv) - len(flags)]
    return typed if sys.orig_argv[len(typed) :] == flags else []


def _name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.rpartition(".")[2] if spec else Path(sys.argv[0]).stem
