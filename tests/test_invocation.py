"""The commands that messages say to type start as the running command does."""

import shlex
import sys
from pathlib import Path

import pytest

from bert_jax import invocation

FLAGS = ["--config=a b.py"]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (["python", "-m", "bert_jax.train"], "python -m bert_jax.predict --model=run"),
        ([".venv/bin/python", "-u", "-m", "bert_jax", "train"], ".venv/bin/python -u -m bert_jax predict --model=run"),
        (["/usr/bin/python", ".venv/bin/bert-jax", "train"], ".venv/bin/bert-jax predict --model=run"),
        (["/usr/bin/python", "a program.py"], "bert-jax predict --model=run"),
    ],
)
def test_a_command_starts_as_the_running_one(monkeypatch: pytest.MonkeyPatch, start: list[str], expected: str):
    monkeypatch.setattr(sys, "argv", ["bert-jax train", *FLAGS])
    monkeypatch.setattr(sys, "orig_argv", [*start, *FLAGS])
    assert invocation.command("predict", "--model=run") == expected


def test_the_script_on_the_path_is_typed_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = tmp_path / "bert-jax"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bert-jax train", *FLAGS])
    monkeypatch.setattr(sys, "orig_argv", ["python", str(script), "train", *FLAGS])
    assert invocation.command("train") == "bert-jax train"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "bert_jax.train"}))
    assert invocation.same_command() == "bert-jax train '--config=a b.py'"


def test_next_commands_can_be_copied_line_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert invocation.next_steps("first", "second").splitlines() == ["next:", "    first", "    second"]
    assert invocation.shown(tmp_path / "a run") == "'a run'"
    assert invocation.shown(tmp_path) == str(tmp_path)
    assert invocation.shown(Path("/elsewhere")) == "/elsewhere"


@pytest.mark.parametrize("code", ["print('a')", 'print("it\'s")', "print('$HOME')"])
def test_a_line_of_python_is_one_argument_of_a_shell(code: str):
    assert shlex.split(invocation.python(code)) == [invocation.interpreter(), "-c", code]
