"""Standard streams that are closed, full or without a reader: a sensible status, one line at most, no lost file."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT, environment

FULL = "standard output cannot be written (No space left on device): free disk space, or redirect it elsewhere"
# A command that opens a file before it prints, as all do, and prints `{lines}` lines.
COMMAND = """
import sys
from bert_jax import cli, streams
def main():
    with open({file!r}, "w") as file:
        for number in range({lines}):
            print("a line", "\\udcff")
        print("to standard error", file=sys.stderr)
        file.write("the file")
    {more}
    return {status}
cli.run(main)
"""


def command(file: Path, redirections: str, *, lines: int, more: str = "pass", status: int = 0) -> tuple[int, str]:
    """Return the status and what the command wrote to standard error, if that is there."""
    text = COMMAND.format(file=str(file), lines=lines, more=more, status=status)
    errors = file.with_name("errors")
    errors.touch()
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'"$0" -c "$1" 2>"$2" >"$3" {redirections}',
            sys.executable,
            text,
            errors,
            file.with_name("out"),
        ],
        cwd=ROOT,
        env=environment(),
        timeout=60,
        check=False,
    )
    return done.returncode, errors.read_text()


@pytest.mark.parametrize("lines", [1, 5000])
@pytest.mark.parametrize("redirections", ["", ">&-", "<&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-", ">&- 2>/dev/full"])
def test_a_command_survives_streams_that_are_closed(tmp_path: Path, redirections: str, lines: int):
    status, errors = command(tmp_path / "file", redirections, lines=lines)
    assert status == 0
    assert errors == ("" if "2>" in redirections else "to standard error\n")
    assert (tmp_path / "file").read_text() == "the file"  # and nothing that was printed


@pytest.mark.parametrize("lines", [1, 5000])  # one is still buffered when the command ends
def test_output_that_is_full_is_one_line_and_status_2(tmp_path: Path, lines: int):
    status, errors = command(tmp_path / "file", ">/dev/full", lines=lines)
    assert status == 2
    assert errors.splitlines()[-1].startswith(f"error: {FULL}")
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("error")]) == 1
    status, errors = command(tmp_path / "file", ">/dev/full 2>/dev/full", lines=lines)
    assert (status, errors) == (2, "")


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path):
    more = "sys.stdout.write('a line that is still buffered'); cli.fail('the reason')"
    status, errors = command(tmp_path / "file", ">/dev/full", lines=0, more=more)
    assert (status, errors.splitlines()[1:]) == (2, ["error: the reason"])


def test_a_line_is_in_a_log_as_soon_as_it_is_printed(tmp_path: Path):
    more = f"print(repr(open({str(tmp_path / 'out')!r}).read()), file=sys.stderr)"
    status, errors = command(tmp_path / "file", "", lines=1, more=more)
    assert (status, errors.splitlines()[1]) == (0, repr("a line \\udcff\n"))


def test_results_that_would_go_nowhere_are_refused(tmp_path: Path):
    more = "streams.require_output(remedy='redirect it')"
    assert command(tmp_path / "file", ">&-", lines=1, more=more)[0] == 2
    assert command(tmp_path / "file", "", lines=1, more=more)[0] == 0


@pytest.mark.parametrize("module", ["evaluate", "plan"])
def test_commands_whose_results_would_go_nowhere_say_so_at_once(module: str):
    script = f"exec {sys.executable} -m bert_jax.{module} >&-"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "error: standard output is closed: redirect it to a file\n")


def test_memory_that_runs_out_is_one_line(tmp_path: Path):
    status, errors = command(tmp_path / "file", "", lines=0, more="raise MemoryError")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: memory ran out")


def test_a_file_that_cannot_be_written_is_one_line_wherever_that_happens(tmp_path: Path):
    advice = "free disk space or fix the permissions, then run the same command again"
    status, errors = command(tmp_path / "file", "", lines=0, more="open('/dev/full', 'wb', buffering=0).write(b'x')")
    assert (status, errors.splitlines()[-1]) == (2, f"error: a file: No space left on device: {advice}")
    status, errors = command(tmp_path / "file", "", lines=0, more="open('/none/x', 'w')")
    assert (status, errors.splitlines()[-1]) == (2, f"error: /none/x: No such file or directory: {advice}")
    assert "Traceback" not in errors
    status, errors = command(tmp_path / "file", "", lines=0, more="raise OSError('of another kind')")
    assert status == 1
    assert "Traceback" in errors
