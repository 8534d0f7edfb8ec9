"""Atomic writes of files, and opening of regular ones.

A reader sees either the old or the new content of a file: the new content is written to `.NAME.PID.partial` in the same
folder, then renamed. A process that fails removes the partial file; a process that is killed leaves it there.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bert_jax.errors import UserError

# What is wrong with a file and not with the program.
_OF_FILES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
SUFFIX = ".partial"  # of a file that is being written
RESUME = "free disk space or fix the permissions, then run the same command again to resume from the last checkpoint"


@contextlib.contextmanager
def replacing(file: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to. It is renamed to `file` if the body succeeds and removed if it fails.

    With `durable` the content is flushed to disk before the rename, so the old or the new file survives a power
    failure. That costs milliseconds: pass False only for files that are written often and may be lost.

    Raises:
      OSError: if the file cannot be written.
    """
    file = Path(file)
    if file.exists() and not file.is_file() and not file.is_dir():  # a rename would replace a pipe or a device
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file", str(file))
    partial = _partial(file)
    try:
        yield partial
        if durable:
            with partial.open("rb+") as written:
                os.fsync(written.fileno())
        partial.replace(file)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder to fill. It is renamed to `folder` if the body succeeds and removed if it fails.

    Raises:
      OSError: if the folder cannot be written, or `folder` exists and is not empty.
    """
    folder = Path(folder)
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process with the same PID
    partial.mkdir()
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(file: str | os.PathLike, content: bytes, *, durable: bool = True) -> None:
    """Write a file atomically; arguments and errors are those of `replacing`."""
    with replacing(file, durable=durable) as partial:
        partial.write_bytes(content)


def write_text(file: str | os.PathLike, text: str, *, durable: bool = True) -> None:
    r"""Write UTF-8 text atomically; a lone surrogate, which UTF-8 cannot hold, is written as \udXXX."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_json(file: str | os.PathLike, value: Any, *, indent: int | None = 1, durable: bool = True) -> None:
    """Write a value as JSON, atomically."""
    write_text(file, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", durable=durable)


def write_json_lines(file: str | os.PathLike, records: Iterable[Mapping[str, Any]], *, durable: bool = True) -> None:
    """Write one JSON object per line, atomically."""
    write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), durable=durable)


@contextlib.contextmanager
def writing(what: str | os.PathLike, *, remedy: str) -> Iterator[None]:
    """Turn an `OSError` in the body into a one-line error about `what`: a file, or a flag followed by a colon.

    Raises:
      UserError: with the reason and `remedy`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror or error}): {remedy}") from error


def system_error(error: BaseException) -> str:
    """Return a line for an error of a file that nothing else has explained, "" for an error of another kind."""
    if not isinstance(error, OSError) or error.errno not in _OF_FILES:
        return ""
    name = error.filename if isinstance(error.filename, str) else "a file"
    return f"{name}: {error.strerror}: free disk space or fix the permissions, then run the same command again"


def open_regular(file: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading. Anything else is refused at once: opening a pipe waits for its other end.

    Raises:
      OSError: if it cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "its name contains a NUL character") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
            raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_limited(file: str | os.PathLike, *, max_bytes: int) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`.

    Raises:
      OSError: if it cannot be read, is not a regular file, or is larger.
    """
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size  # a read of `max_bytes` would allocate as much
        content = stream.read(min(size, max_bytes) + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes >> 20} MiB, so it is the wrong file")
    return content


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
