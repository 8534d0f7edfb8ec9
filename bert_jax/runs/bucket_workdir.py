"""A workdir in a bucket (gs://): its files are copied to this machine and back, its checkpoints are only in the bucket.

The run works in the copy. Before each checkpoint, host 0 uploads the files that changed, so a complete checkpoint never
comes before the metrics up to its step. A start replaces the copy by what the bucket has: that is what it resumes from.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from bert_jax.buckets import BucketFolder, Object, cache_folder, visible_files
from bert_jax.errors import UserError
from bert_jax.jax_internals import complete_steps
from bert_jax.locations import is_bucket, refuse_url
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs.bucket_lock import BucketLock
from bert_jax.runs.compilation_cache import DIRECTORY

CHECKPOINTS = "checkpoints"
_LOCAL = (DIRECTORY, CHECKPOINTS)  # not uploaded: of this machine, and empty folders that stand for checkpoints


class BucketWorkdir:
    """The copy of one workdir; only host 0 has its `lock` and uploads."""

    def __init__(self, url: str, *, copy: str, lock: BucketLock | None = None):
        """Copy what the bucket has to this machine's copy of that name: processes do not share one.

        Raises:
          UserError: here and in `publish`, if the bucket cannot be read or written.
        """
        self.url = url.rstrip("/")
        self.path = cache_folder("workdirs", self.url, copy)
        self._bucket = BucketFolder(self.url, name="--workdir")
        self._lock = lock
        self._published: dict[str, tuple[int, int]] = {}
        self._has_saved = False
        self._copy(self._bucket.objects())

    def checkpoints(self, name: str) -> Any:
        """Return the folder of checkpoints `name` in the bucket, as Orbax takes it."""
        return epath.Path(f"{self.url}/{name}")

    def publish(self) -> None:
        """Upload the files that changed since the last call.

        Raises:
          UserError: also if the lock was lost.
        """
        if self._lock is None:
            return
        self._lock.check()
        for name, file in self._files().items():
            with contextlib.suppress(FileNotFoundError):  # a temporary file of a library
                state = file.stat().st_mtime_ns, file.stat().st_size
                if self._published.get(name) != state:
                    self._bucket.write(name, file.read_bytes())
                    self._published[name] = state
        self._has_saved = True

    def finish(self) -> None:
        """Upload what was written after the last checkpoint, such as the page; nothing, if the run saved nothing."""
        if self._has_saved:
            self.publish()

    def _files(self) -> dict[str, Path]:
        return {n: path for n, path in visible_files(self.path).items() if n.partition("/")[0] not in _LOCAL}

    def _copy(self, objects: dict[str, Object]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        files = {
            name: value
            for name, value in objects.items()
            if not name.startswith((f"{CHECKPOINTS}/", ".")) and ".damaged" not in name
        }
        for name, path in self._files().items():
            if name not in files or not files[name].describes(path):
                path.unlink()
        self._bucket.download(files, to=self.path, report=lambda line: None)
        self._published = {name: (path.stat().st_mtime_ns, path.stat().st_size) for name, path in self._files().items()}
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        for step in complete_steps(objects):
            (self.path / CHECKPOINTS / str(step)).mkdir(parents=True)


@contextlib.contextmanager
def opened(url: str, *, hosts: Hosts, report: Callable[[str], None]) -> Iterator[BucketWorkdir]:
    """Lock a workdir in a bucket and yield it, on every host.

    Raises:
      UserError: if another process trains in it, or hosts have different ones.
    """
    refuse_url(url, name="--workdir", buckets=True)
    hosts.check_same("workdir", {"--workdir": url})
    lock: BucketLock | None = None
    with contextlib.ExitStack() as stack:
        with hosts.main_first("lock of the workdir"):
            if hosts.is_main:
                lock = BucketLock(url.rstrip("/"), report=report)
                stack.callback(lock.release)
        workdir = BucketWorkdir(url, copy=f"host {hosts.index}", lock=lock)
        try:
            yield workdir
        except UserError as error:
            if str(workdir.path) not in str(error) or type(error) is not UserError:
                raise
            raise UserError(str(error).replace(str(workdir.path), workdir.url)) from error
        workdir.finish()


def local_copy(workdir: str | Path) -> Path:
    """Return a workdir on this machine to look at: itself, or a new copy of one in a bucket.

    Raises:
      UserError: if the bucket cannot be read.
    """
    return BucketWorkdir(os.fspath(workdir), copy="to look at").path if is_bucket(workdir) else Path(workdir)


def require_dataset(directory: str) -> None:
    """Check that a data set is named: one that is built in the workdir would be on one host only.

    Raises:
      UserError: with what to type.
    """
    if not directory:
        raise UserError(
            "--workdir in a bucket: the data set cannot be built in it: type bert-jax prepare --input=FILES "
            "--out=gs://BUCKET/DATA first, then add --config.data.directory=gs://BUCKET/DATA"
        )
