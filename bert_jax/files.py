"""Files written whole or not at all, and JSON read with one short reason where it cannot be.

Whoever reads a file that is written here finds its old content or its new one: the content goes into a file of another
name in the same folder, which takes the name at the end. A process that is killed leaves that file under its other
name, `.NAME.PID.partial`; one that fails removes it.
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

SUFFIX = ".partial"  # of what is being written
MAX_JSON_BYTES = 64 << 20  # a configuration, a tokenizer of a million tokens: what is larger is some other file
RESUME = "free disk space or fix the permissions, then run the same command again to resume from the last checkpoint"
_REASON = 100  # characters of a parser's message that fit into a line


@contextlib.contextmanager
def replacing(file: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Give the path to write to; it becomes `file` when the body succeeds and is removed when it fails.

    With `durable` the content is on the disk before it takes the name, so that a machine that loses power keeps the old
    file or the new one. That costs milliseconds: leave it out only for what is written often and can be lost.

    Raises:
      OSError: if the disk refuses.
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
    """Give an empty folder to fill; it becomes `folder` when the body succeeds and is removed when it fails.

    Raises:
      OSError: if the disk refuses, or `folder` exists and is not empty.
    """
    folder = Path(folder)
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same number
    partial.mkdir()
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(file: str | os.PathLike, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all; arguments and errors as of `replacing`."""
    with replacing(file, durable=durable) as partial:
        partial.write_bytes(content)


def write_text(file: str | os.PathLike, text: str, *, durable: bool = True) -> None:
    r"""Write UTF-8 text whole or not at all; half a surrogate pair, which UTF-8 cannot hold, is written as \udXXX."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_json(file: str | os.PathLike, value: Any, *, indent: int | None = 1, durable: bool = True) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", durable=durable)


def write_json_lines(file: str | os.PathLike, records: Iterable[Mapping[str, Any]], *, durable: bool = True) -> None:
    """Write a JSON object per line, the file whole or not at all."""
    write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), durable=durable)


@contextlib.contextmanager
def writing(what: str | os.PathLike, *, remedy: str) -> Iterator[None]:
    """Turn what the operating system refuses in the body into one line about `what`: a file, or a flag and a colon.

    Raises:
      UserError: with the reason and `remedy`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror or error}): {remedy}") from error


def parse_json(content: str | bytes, *, allow_nan: bool = True) -> Any:
    """Return the value of a JSON text, which may begin with a byte order mark.

    Raises:
      ValueError: with a reason that fits into a line; without `allow_nan` also for NaN and infinities.
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
    """Return the object of a JSON text, for example of a line of a JSON-lines file.

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
    """Return the value of a JSON file, for callers who have their own words for what can be wrong.

    Raises:
      OSError: if it cannot be read.
      ValueError: with a reason that fits into a line.
    """
    file = Path(file)
    if file.stat().st_size > MAX_JSON_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_JSON_BYTES >> 20} MiB, so it is some other file")
    return parse_json(file.read_bytes())


def read_json(
    file: str | os.PathLike, *, remedy: str = "restore the file", missing: str = "put it there, or name another folder"
) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
      UserError: naming the file and what is wrong, then `missing` where there is no file, else `remedy`.
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


def read_records(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file that a run appends to, in order; none where there is no file.

    Lines that are cut off, as a killed run leaves its last one, are skipped.

    Raises:
      OSError: if the file is there and cannot be read.
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
