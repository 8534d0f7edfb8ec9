"""Drawing a page neither stops nor delays a run: another process draws, requests join, failures are one line."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bert_jax.invocation import command
from bert_jax.runs import page_writer
from bert_jax.runs.page_writer import PageWriter

FIRST, SECOND = Path("first"), Path("second")


class Drawing:
    """A process that ends when it is told to."""

    def __init__(self, command: list[str], **_: Any):
        self.folder = command[3].removeprefix("--workdir=")
        self.returncode: int | None = None
        self.errors = ""

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None and self.folder == "hangs":
            raise subprocess.TimeoutExpired("report", timeout)
        self.returncode = self.returncode or 0
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def communicate(self) -> tuple[None, str]:
        return None, self.errors


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Drawing]:
    started: list[Drawing] = []

    def start(command: list[str], **options: Any) -> Drawing:
        started.append(Drawing(command, **options))
        return started[-1]

    monkeypatch.setattr(page_writer.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(page_writer.subprocess, "Popen", start)
    return started


def folders(drawings: list[Drawing]) -> list[str]:
    return [drawing.folder for drawing in drawings]


def test_requests_during_a_drawing_wait_and_become_one(drawings: list[Drawing]):
    writer = PageWriter(enabled=True, report=pytest.fail)
    for _ in range(5):
        writer.request(FIRST)
    assert folders(drawings) == ["first"]
    drawings[0].returncode = 0
    writer.request(FIRST)
    assert folders(drawings) == ["first", "first"]
    writer.close()
    assert folders(drawings) == ["first", "first"]


def test_everything_requested_is_drawn_at_the_end(drawings: list[Drawing]):
    writer = PageWriter(enabled=True, report=pytest.fail)
    for folder in (FIRST, SECOND, FIRST):
        writer.request(folder)
    writer.close()
    assert folders(drawings) == ["first", "second", "first"]


def test_a_drawing_that_hangs_is_given_up_at_the_end(drawings: list[Drawing], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_writer, "_MOST_SECONDS", 0.0)
    lines: list[str] = []
    writer = PageWriter(enabled=True, report=lines.append)
    writer.request(Path("hangs"))
    writer.request(FIRST)
    writer.request(Path("hangs"))
    writer.close()
    assert folders(drawings) == ["hangs"]
    assert [line.partition(": type ")[0] for line in lines] == ["the last page took too long to write"] * 2
    typed = [line.partition(": type ")[2] for line in lines]
    assert typed == [command("report", f"--workdir={name}") for name in ("hangs", "first")]


def test_the_first_failure_is_one_line(drawings: list[Drawing]):
    lines: list[str] = []
    writer = PageWriter(enabled=True, report=lines.append)
    for _ in range(3):
        writer.request(FIRST)
        drawings[-1].returncode, drawings[-1].errors = 2, "warning\nerror: the disk is full\n"
    writer.close()
    assert lines == ["report.html was not written (error: the disk is full); the run continues"]


def test_without_the_library_one_line_names_the_extra_and_nothing_is_drawn(
    drawings: list[Drawing], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(page_writer.importlib.util, "find_spec", lambda name: None)
    lines: list[str] = []
    writer = PageWriter(enabled=True, report=lines.append)
    writer.request(FIRST)
    assert lines == []  # said at the end of a run alone
    for _ in range(2):
        writer.report_missing()
    writer.close()
    assert len(lines) == 1
    assert "pip install 'bert_jax[report]'" in lines[0]
    assert drawings == []


def test_a_run_that_wants_no_page_says_nothing(drawings: list[Drawing]):
    writer = PageWriter(enabled=False, report=pytest.fail)
    writer.request(FIRST)
    writer.report_missing()
    writer.close()
    assert drawings == []
