"""The commands and files that the README and the documentation show, as data for tests.

A block of bash after `<!-- run FLAGS -->` is one that works as it is; a test appends FLAGS, which make it small, to
each command with a config or, where there is none, to each `prepare`. A block of data with a `title` is the file of
that name.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from bert_jax.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

_FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"<!-- run(.*?)-->\s*\Z")
_TITLE = re.compile(r'title="([^"]+)"')
_SEPARATORS = ";&|()\n"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page: language, text, title, and the flags of its `run` mark (None without one)."""

    page: str
    line: int
    language: str
    text: str
    title: str
    run: str | None

    def runnable(self) -> str:
        """Return the script with the flags of the mark appended to its commands."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return "\n".join(_append(line, self.run or "") for line in lines)


def _append(line: str, flags: str) -> str:
    """Return a line of a script with flags after its command, where it is one that they are for."""
    is_prepare = re.match(r"bert-jax prepare\b", line) and "--config" not in flags
    is_configured = "--config=" in line and "--config." in flags
    return f"{line} {shlex.join(shlex.split(flags))}" if flags and (is_prepare or is_configured) else line


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = _RUN.search(text[: match.start()])
        title = _TITLE.search(match[3])
        line = text.count("\n", 0, match.start()) + 1
        name = str(page.relative_to(ROOT))
        found.append(
            Block(name, line, match[2], match[4], title[1] if title else "", mark[1].strip() if mark else None)
        )
    return found


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `bert_jax` as a page shows it: its name, its flags, and where it is."""

    name: str
    flags: tuple[str, ...]
    where: str


def commands(page: Path) -> list[Command]:
    """Return the commands in the bash blocks of a page, and in code within its text."""
    found = []
    for block in blocks(page):
        if block.language in ("bash", "sh"):
            found += _commands_of(block.text, where=f"{block.page}:{block.line}")
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in re.finditer(r"(?<!`)`([^`\n]+)`", text):
        span = match[1].replace("\\|", "|")
        if re.search(r"\bbert-jax \w|-m bert_jax\.\w|launch/\w+\.sh .*--", span):
            found += _commands_of(span, where=f"{page.relative_to(ROOT)}: {span}")
    return found


def _commands_of(script: str, *, where: str) -> Iterator[Command]:
    lexer = shlex.shlex(re.sub(r"\\\n\s*", " ", script), posix=True, punctuation_chars=_SEPARATORS)
    lexer.whitespace_split, lexer.whitespace = True, " \t"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not word.strip(_SEPARATORS):
            yield from _command_of(words, where=where)
            words = []
        else:
            words.append(word)


def _command_of(words: list[str], *, where: str) -> Iterator[Command]:
    """Yield the command of one simple shell command, without flags whose value is left to the reader (`...`, FILE)."""
    for index, word in enumerate(words):
        rest = words[index + 1 :]
        if word.rpartition("/")[2] == "bert-jax" and rest and rest[0].isidentifier():
            name, flags = rest[0], rest[1:]
        elif word == "-m" and rest and rest[0].startswith("bert_jax."):
            name, flags = rest[0].removeprefix("bert_jax."), rest[1:]
        elif re.fullmatch(r"launch/\w+\.sh", word) and "--" in rest:
            name, flags = "train", rest[rest.index("--") + 1 :]
        else:
            continue
        if name != "COMMAND":
            assert name in COMMANDS, f"{where}: {name} is not a command"
            given = [flag for flag in flags if flag.startswith("--") and not flag.endswith(("=...", "--config=FILE"))]
            yield Command(name, tuple(given), where)
        return
