"""What a command that trains holds open while it runs: hosts, the workdir's lock, compiled programs, signals."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import jax

from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.stopping import AgreedStop, StopRequest

# Exit statuses: a launcher restarts on PREEMPTED (EX_TEMPFAIL of sysexits.h); 130 is the shell's for Ctrl-C.
FINISHED, PREEMPTED, INTERRUPTED = 0, 75, 130


@dataclasses.dataclass
class Runtime:
    """The open parts that all runs of one command share.

    Attributes:
      path: the workdir, one folder on all hosts.
      hosts: the hosts of the command.
      cache: compiled programs of the workdir.
      lock: held by host 0, so that no other command trains in the workdir.
      report: prints a line, on host 0 alone.
      command: what the user types to resume.
      begun: when the process began, in seconds since the epoch.
    """

    path: Path
    hosts: Hosts
    cache: CompilationCache
    lock: IO[str] | None
    report: Callable[[str], None] = print
    command: str = "the same command"
    begun: float = dataclasses.field(default_factory=time.time)
    _stop: AgreedStop | None = None

    @property
    def devices(self) -> str:
        """Return the devices and hosts in words."""
        plural = "s" if self.hosts.count > 1 else ""
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {self.hosts.count} host{plural}"

    def start_run(self) -> float:
        """Return when the run that starts now began: the first of a command begins with its process."""
        begun, self.begun = self.begun, 0.0
        return begun or time.time()

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Turn SIGTERM and Ctrl-C into a request to stop at a step boundary, the same one on every host."""
        with StopRequest() as request, AgreedStop(request, hosts=self.hosts) as stop:
            self._stop = stop
            try:
                yield
            finally:
                self._stop = None

    def should_stop(self) -> bool:
        """Return whether to stop at this step boundary; every host asks once a boundary."""
        return self._stop is not None and self._stop()

    def stopped_status(self) -> int:
        """Return the exit status after a request to stop; inside `heeding_signals`."""
        return PREEMPTED if self._stop is not None and self._stop.received == signal.SIGTERM else INTERRUPTED

    def close(self) -> None:
        """Let another command have the workdir."""
        self.cache.close()
        if self.lock is not None:
            self.lock.close()


def silent(text: str) -> None:
    """Print nothing."""
    del text
