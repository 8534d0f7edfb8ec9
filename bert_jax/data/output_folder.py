"""The folder that a data set is built in: checked before the work, locked during it, and clean after a refusal."""

import contextlib
import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bert_jax.data.dataset_info import finished_lengths
from bert_jax.data.shards import DATASET_NAME
from bert_jax.errors import UserError


class Refused(UserError):
    """An error that the same text and settings always give: what was done is of no use to a later build."""


@contextlib.contextmanager
def discarding(out: Path, *, is_new: bool) -> Iterator[None]:
    """Remove a refused build that has no finished length; `out` too if it `is_new`."""
    try:
        yield
    except Refused:
        if not finished_lengths(out):
            for name in ("work", "vocab", DATASET_NAME):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in ("manifest.json", ".lock"):
                (out / name).unlink(missing_ok=True)
            if is_new:
                with contextlib.suppress(OSError):  # not empty
                    out.rmdir()
        raise


def check_folder(out: Path) -> None:
    """Check that nothing on the way to `out` is a file."""
    existing = next(parent for parent in [out, *out.parents] if os.path.lexists(parent))
    if not existing.is_dir():
        raise UserError(f"--out={out}: {existing} is not a folder: choose an --out that you may write to")


def check_writable(out: Path) -> None:
    """Check by a trial that folders can be made where `out` is or will be: permissions do not say so of /proc."""
    existing = next(parent for parent in [out, *out.parents] if parent.exists())
    try:
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise UserError(
            f"--out={out}: cannot write in {existing} ({error.strerror}): choose an --out that you may write to"
        ) from None


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextlib.contextmanager
def system_errors(out: Path) -> Iterator[None]:
    """Turn errors of the operating system into one line; after Ctrl-C, say how to resume."""
    try:
        yield
    except OSError as error:
        resume = "finished work is kept; run the same command to resume"
        if error.errno in _DISK_FULL:
            raise UserError(f"the disk of {out} is full: free disk space; {resume}") from None
        if error.errno not in _REFUSED:
            raise
        raise UserError(
            f"{error.filename or out}: {error.strerror}: choose an --out that you may write to; {resume}"
        ) from None
    except KeyboardInterrupt:
        print(f"stopped; finished shards are kept in {out}: run the same command to resume", file=sys.stderr)
        raise


@contextlib.contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Lock `out` against other builds."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is building {out}: wait for it, or choose another --out") from None
        yield
