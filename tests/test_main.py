"""`bert-jax COMMAND` is `python -m bert_jax.COMMAND`; what is not a command is one line with the nearest name."""

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from bert_jax import __main__ as entry
from tests import command_server
from tests.runs import environment, run
from tests.terminals import on_terminal


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_commands_are_listed_with_what_they_do(arguments: list[str]):
    done = run([sys.executable, "-m", "bert_jax", *arguments])
    assert done.returncode == 0
    for name in entry.COMMANDS:
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith(f"{name} "))
        assert len(line.split()) > 3, line


def test_the_list_of_commands_fits_the_terminal():
    code = "import sys; from bert_jax import __main__; sys.argv = ['bert-jax', *{}]; __main__.main()"
    for arguments in ([], ["nonsense"]):
        shown = on_terminal(code.format(arguments))
        assert max(map(len, shown.splitlines())) <= 80
        assert "reproduce" in shown


def test_every_command_has_a_file():
    folder = Path(entry.__file__).parent
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    runnable = {name for name, text in texts.items() if "cli.run(main" in text and "def run(main" not in text}
    assert runnable == set(entry.COMMANDS)


def test_the_version_is_that_of_the_package():
    for command in (["-m", "bert_jax", "--version"], ["-m", "bert_jax", "train", "--version"]):
        done = run([sys.executable, *command])
        assert (done.returncode, done.stdout.strip()) == (0, f"bert_jax {metadata.version('bert_jax')}")


def test_a_wrong_command_names_the_nearest():
    done = run([sys.executable, "-m", "bert_jax", "trian"])
    assert done.returncode == 2
    assert done.stderr == "error: 'trian' is not a command of bert-jax: did you mean train?\n"


def test_a_command_takes_its_flags_and_keeps_its_status():
    done = run([sys.executable, "-m", "bert_jax", "train", "--config=configs/nothing.py"])
    assert done.returncode == 2
    assert "there is no file 'configs/nothing.py'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_a_command_starts_in_an_interpreter_of_its_own(name: str):
    command = [sys.executable, "-m", f"bert_jax.{name}", "--nonsense=1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_all_that_the_command_server_imports_is_there():
    for name in command_server.PRELOAD:
        importlib.import_module(name)


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("bert-jax")
    if not script.exists():
        pytest.skip("the package is not installed in this environment: pip install -e .")
    done = subprocess.run([script, "--version"], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("bert_jax ")
