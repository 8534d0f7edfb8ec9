"""Resources of a training command while it runs: hosts, the workdir's lock, compiled programs, signals."""

import contextlib
import dataclasses
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax

from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.bucket_workdir import BucketWorkdir
from bert_jax.runs.compilation_cache import DIRECTORY, CompilationCache
from bert_jax.runs.page_writer import PageWriter
from bert_jax.runs.stopping import AgreedStop, StopRequest
from bert_jax.runs.workdir import UNUSED

# Exit statuses: a launcher restarts on PREEMPTED (EX_TEMPFAIL of sysexits.h); 130 is the shell's for Ctrl-C.
FINISHED, PREEMPTED, INTERRUPTED = 0, 75, 130


@dataclasses.dataclass
class Runtime:
    """The resources shared by all runs of one command.

    Attributes:
      path: the workdir, one folder on all hosts.
      hosts: the hosts of the command.
      cache: compiled programs of the workdir.
      lock: held by host 0; keeps other commands out of the workdir.
      report: prints a line on host 0 only.
      command: what the user types to resume, "" if that is not a command.
      started_at: when the process started, in seconds since the epoch.
      is_new: whether this command created the workdir.
      pages: draws the pages of the runs; None draws nothing.
      bucket: the workdir in a bucket that `path` is a copy of; None: `path` is the workdir.
    """

    path: Path
    hosts: Hosts
    cache: CompilationCache
    lock: IO[str] | None
    report: Callable[[str], None] = print
    command: str = ""
    started_at: float = dataclasses.field(default_factory=time.time)
    is_new: bool = False
    pages: PageWriter | None = None
    bucket: BucketWorkdir | None = None
    _stop: AgreedStop | None = None

    @property
    def devices(self) -> str:
        """Return a description of devices and hosts."""
        plural = "s" if self.hosts.count > 1 else ""
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}, {self.hosts.count} host{plural}"

    @property
    def shown(self) -> Path | str:
        """Return the workdir as the user knows it."""
        return self.path if self.bucket is None else self.bucket.url

    def checkpoints(self, directory: Path, *, name: str) -> Any:
        """Return the folder of the checkpoints of a run in `directory`."""
        return directory / name if self.bucket is None else self.bucket.checkpoints(name)

    def publish(self) -> None:
        """Bring what the run has written to where the next start finds it."""
        if self.bucket is not None:
            self.bucket.publish()

    def start_run(self) -> float:
        """Return the start time of a new run: for the first run of a command, that of its process."""
        started_at, self.started_at = self.started_at, 0.0
        return started_at or time.time()

    @contextlib.contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Turn SIGTERM and Ctrl-C into a request to stop, at the same step boundary on every host."""
        with StopRequest() as request, AgreedStop(request, hosts=self.hosts) as stop:
            self._stop = stop
            try:
                yield
            finally:
                self._stop = None

    def should_stop(self) -> bool:
        """Return whether to stop at this step boundary; every host calls this once per boundary."""
        return self._stop is not None and self._stop()

    def stopped_status(self) -> int:
        """Return the exit status after a request to stop; call it inside `handling_signals`."""
        return PREEMPTED if self._stop is not None and self._stop.received == signal.SIGTERM else INTERRUPTED

    def draw_page(self, directory: Path) -> None:
        """Request the page of a run, which another process writes from its files."""
        if self.pages is not None:
            self.pages.request(directory)

    def report_missing_page(self) -> None:
        """Report, at the end of the first run that trained, what its page would need."""
        if self.pages is not None:
            self.pages.report_missing()

    def close(self) -> None:
        """Finish the pages, and release the workdir; one that this command created and never used is removed."""
        if self.pages is not None:
            self.pages.close()
        self.cache.close()
        if self.is_new and all(file.name in (*UNUSED, DIRECTORY) for file in self.path.iterdir()):
            shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            self.lock.close()


def silent(text: str) -> None:
    """Print nothing."""
    del text
