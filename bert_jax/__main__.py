"""Entry point of `bert-jax COMMAND --flag=value` and `python -m bert_jax COMMAND`; `--help` lists the commands."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from bert_jax import streams

COMMANDS = (
    "prepare",
    "train",
    "distill",
    "evaluate",
    "finetune",
    "predict",
    "export",
    "plan",
    "report",
    "doctor",
    "reproduce",
)
USAGE_ERROR = 2


def main() -> None:
    """Run the command named by the first argument, like `python -m bert_jax.COMMAND`."""
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in ("--help", "-h", "help"):
        streams.prepare()
        print(usage())
    elif first == "--version":
        from bert_jax.usage import version  # absl, which a list of commands does not need

        print(f"bert_jax {version()}")
    elif first in COMMANDS:
        sys.argv = [f"bert-jax {first}", *sys.argv[2:]]
        runpy.run_module(f"bert_jax.{first}", run_name="__main__", alter_sys=True)
    else:
        streams.prepare()
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: {first!r} is not a command of bert-jax: {hint}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def usage() -> str:
    """Return the usage text: each command with its summary."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: bert-jax COMMAND --flag=value ...     (or python -m bert_jax.COMMAND)",
            "",
            *lines,
            "",
            "bert-jax COMMAND --help lists the flags of a command, bert-jax --version prints the version.",
        ]
    )


def summary(name: str) -> str:
    """Return a command's summary: the first line of its docstring, read without importing the module."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return line.partition(": `")[0].rstrip(".:")


if __name__ == "__main__":
    main()
