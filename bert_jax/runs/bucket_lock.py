"""The lock of a workdir in a bucket: an object that one process creates and rewrites while it lives.

Every write names the generation that it replaces, so of two processes only one succeeds; no clocks are compared. A
process that was killed leaves its lock. It is taken over at once where the process is known to be dead (it ran on this
machine), else when the object has not changed for `STALE_SECONDS`.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_jax.buckets import remedy_of
from bert_jax.errors import UserError
from bert_jax.json_files import parse_object

NAME = ".lock"
BEAT_SECONDS, STALE_SECONDS = 15.0, 90.0
_POLL_SECONDS = 2.0


class BucketLock:
    """The lock of one folder, held from creation until `release`."""

    def __init__(self, url: str, *, report: Callable[[str], None]):
        """Take the lock.

        Raises:
          UserError: if another process holds it and lives, or the bucket cannot be written.
        """
        self._url, self._report = url, report
        try:
            from google.api_core import exceptions
            from google.cloud import storage

            self._refused: Any = (exceptions.PreconditionFailed, exceptions.NotFound)
            bucket, _, path = url.removeprefix("gs://").partition("/")
            self._blob: Any = storage.Client().bucket(bucket).blob(f"{path}/{NAME}")
            self._generation = self._take()
        except UserError:
            raise
        except Exception as error:  # of any of the libraries
            if reason := remedy_of(error):
                raise UserError(f"--workdir={url}: {reason}") from error
            raise
        self._last_beat = time.monotonic()
        self._lost = ""
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock of the workdir", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that the lock is still held: a machine may have been suspended, or cut off.

        Raises:
          UserError: if another process may have taken it over.
        """
        if not self._lost and time.monotonic() - self._last_beat > STALE_SECONDS:
            self._lost = f"it could not be renewed for {STALE_SECONDS:.0f} seconds"
        if self._lost:
            raise UserError(
                f"--workdir={self._url}: lost its lock ({self._lost}), so nothing more is written there: run the same "
                "command again to resume from the last checkpoint"
            )

    def release(self) -> None:
        """Delete the lock, so that other processes may take it."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # what is left is taken over
            self._blob.delete(if_generation_match=self._generation)

    def _take(self) -> int:
        generation = 0  # of the object to replace: none
        while True:
            try:
                return self._write(generation)
            except self._refused[0]:
                generation = self._wait_for_another()

    def _wait_for_another(self) -> int:
        """Return the generation of a lock without an owner that lives, 0 if there is no lock any more.

        Raises:
          UserError: if its owner lives.
        """
        first, owner = self._read()
        if not first or _is_dead(owner):
            return first
        who = f"{owner.get('host')}, process {owner.get('pid')}, since {owner.get('since')}"
        refusal = UserError(
            f"--workdir={self._url}: another process trains in it ({who}): wait until it ends, or choose another "
            "--workdir"
        )
        if _is_here(owner):
            raise refusal
        self._report(
            f"--workdir={self._url} is locked ({who}): waiting up to {STALE_SECONDS:.0f} s for a sign of life; remove "
            f"{self._url}/{NAME} if that process is gone"
        )
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            generation, _ = self._read()
            if not generation:
                return 0
            if generation != first:
                raise refusal
        return first

    def _read(self) -> tuple[int, dict[str, Any]]:
        try:
            self._blob.reload()
            owner = parse_object(self._blob.download_as_bytes())
        except self._refused:
            return 0, {}
        except ValueError:
            owner = {}
        return int(self._blob.generation), owner

    def _write(self, generation: int) -> int:
        self._blob.upload_from_string(json.dumps(_THIS | {"since": _since()}), if_generation_match=generation)
        return int(self._blob.generation)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                self._generation = self._write(self._generation)
                self._last_beat = time.monotonic()
            except self._refused:
                self._lost = "another process has taken it over"
                return
            except Exception:  # the next one may succeed; `check` sees how long none has
                continue


def _machine() -> str:
    """Return what two processes have in common that see each other's process ids."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


_THIS = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
_STARTED = datetime.datetime.now(datetime.UTC)


def _since() -> str:
    return _STARTED.isoformat(sep=" ", timespec="seconds")


def _is_here(owner: dict[str, Any]) -> bool:
    return bool(_THIS["machine"]) and owner.get("machine") == _THIS["machine"] and isinstance(owner.get("pid"), int)


def _is_dead(owner: dict[str, Any]) -> bool:
    """Return whether the owner ran on this machine and does not any more."""
    if not _is_here(owner):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return owner["pid"] == os.getpid()  # an earlier run of this process; two at once are kept apart by the local lock
