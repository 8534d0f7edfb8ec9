"""Atomic writes of files, and JSON with one-line errors.

A reader sees either the old or the new content of a file: the new content is written to `.NAME.PID.partial` in the same
folder, then renamed. A process that fails removes the partial file; a process that is killed leaves it there.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError

SUFFIX = ".partial"  # of a file that is being written
MAX_JSON_BYTES = 64 << 20  # holds a tokenizer of a million tokens; a larger file is not one of ours
RESUME = "free disk space or fix the permissions, then run the same command again to resume from the last checkpoint"
_REASON = 100  # characters of a parser's message that fit into a line


@contextlib.contextmanager
def replacing(file: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to. It is renamed to `file` if the body succeeds and removed if it fails.

    With `durable` the content is flushed to disk before the rename, so the old or the new file survives a power
    failure. That costs milliseconds: pass False only for files that are written often and may be lost.

    Raises:
      OSError: if the file cannot be written.
    """
    file = Path(file)
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


def parse_json(content: str | bytes, *, allow_nan: bool = True) -> Any:
    """Return the value of a JSON text, which may start with a byte order mark.

    Raises:
      ValueError: with a one-line reason; without `allow_nan` also for NaN and infinities.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
        return json.loads(text, parse_constant=None if allow_nan else _refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())[:_REASON]) from None


def parse_object(content: str | bytes, *, allow_nan: bool = True) -> dict[str, Any]:
    """Return the object in a JSON text, for example a line of a JSON-lines file.

    Raises:
      ValueError: "not JSON (why)" or "not a JSON object".
    """
    try:
        value = parse_json(content, allow_nan=allow_nan)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def load_json(file: str | os.PathLike) -> Any:
    """Return the value of a JSON file, for callers that write their own error messages.

    Raises:
      OSError: if it cannot be read.
      ValueError: with a one-line reason.
    """
    file = Path(file)
    if file.stat().st_size > MAX_JSON_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_JSON_BYTES >> 20} MiB, so it is the wrong file")
    return parse_json(file.read_bytes())


def read_json(
    file: str | os.PathLike, *, remedy: str = "restore the file", missing: str = "put it there, or name another folder"
) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      UserError: naming the file and what is wrong, followed by `missing` if it does not exist, else by `remedy`.
    """
    try:
        value = load_json(file)
    except FileNotFoundError:
        raise UserError(f"{file}: does not exist: {missing}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}): {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold a JSON object: {remedy}")
    return value


def read_log(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file that a run appends to, in order; none if the file does not exist.

    Truncated lines, such as the last line of a killed run, are skipped.

    Raises:
      OSError: if the file exists but cannot be read.
    """
    file = Path(file)
    records: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n") if file.is_file() else ():
        with contextlib.suppress(ValueError):
            records.append(parse_object(line))
    return records


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
