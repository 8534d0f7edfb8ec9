"""Draw WORKDIR/report.html during a run, in a process of its own, so that training never waits for it.

That takes one or two seconds of another core. Requests that come meanwhile wait and become one. What goes
wrong there is one line; the run continues.
"""

import contextlib
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bert_jax
from bert_jax.invocation import command

_COMMAND = "bert_jax.report"
_LIBRARY = "matplotlib"
_MOST_SECONDS = 60.0  # for the last drawings, at the end of a command


class PageWriter:
    """The drawing of the pages of a command's runs. Hosts other than the first draw nothing."""

    def __init__(self, *, enabled: bool, report: Callable[[str], None]):
        """Draw nothing unless `enabled` (config.log.report) and the library is installed."""
        self._report = report
        self._waiting: dict[Path, None] = {}
        self._running: subprocess.Popen[str] | None = None
        self._drawn = Path()  # the workdir of `_running`
        self._has_failed = False
        self._enabled = enabled and importlib.util.find_spec(_LIBRARY) is not None
        self._lacks_library = enabled and not self._enabled

    def request(self, directory: Path) -> None:
        """Write the page of a workdir from what its files hold, now or when the present one is finished."""
        if not self._enabled:
            return
        self._waiting[directory] = None
        if self._running is not None and self._running.poll() is not None:
            self._finish()
        if self._running is None:
            self._start()

    def report_missing(self) -> None:
        """Report, once, that runs have no page because the library is missing: a line for the end of a run."""
        if self._lacks_library:
            self._lacks_library = False
            self._report(
                "no report.html: it needs matplotlib: pip install 'bert_jax[report]' "
                "(--config.log.report=False leaves it out)"
            )

    def close(self) -> None:
        """Wait until everything requested is written, but not for long."""
        end = time.monotonic() + _MOST_SECONDS
        while self._running is not None:
            try:
                self._running.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self._give_up(self._running)
            self._finish()
            if self._waiting:
                self._start()

    def _give_up(self, running: subprocess.Popen[str]) -> None:
        """End a process that takes too long, and report what writes its page and those that wait."""
        self._running = None
        running.kill()
        with contextlib.suppress(OSError, ValueError):
            running.communicate()
        for directory in dict.fromkeys((self._drawn, *self._waiting)):
            line = command("report", f"--workdir={shlex.quote(str(directory))}")
            self._report(f"the last page took too long to write: type {line}")
        self._waiting.clear()

    def _start(self) -> None:
        directory = self._drawn = next(iter(self._waiting))
        del self._waiting[directory]
        root = str(Path(bert_jax.__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._running = subprocess.Popen(
                [sys.executable, "-m", _COMMAND, f"--workdir={directory}", "--background"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C stops the run, not the drawing
            )
        except OSError as error:
            self._fail(error.strerror or str(error))

    def _finish(self) -> None:
        """Collect a process that has ended, and report the first failure."""
        running, self._running = self._running, None
        if running is None:
            return
        errors = ""
        with contextlib.suppress(OSError, ValueError):
            errors = running.communicate()[1] or ""
        if running.returncode:
            lines = errors.strip().splitlines()
            self._fail(lines[-1] if lines else f"exit status {running.returncode}")

    def _fail(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._report(f"report.html was not written ({reason}); the run continues")
