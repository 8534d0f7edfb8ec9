"""Readers of text, TSV and JSON files whose errors name the file and the line."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.opening import open_texts
from bert_jax.errors import UserError, counted
from bert_jax.json_files import fitted, parse_json, parse_object
from bert_jax.json_forms import shown

_MAX_BYTES = 1 << 30  # of a file's text, decompressed; SQuAD's training set has 42 MB, MNLI's 76 MB
_START = 1 << 16  # bytes that show a file's form
_LARGEST = 1e18  # a label or score: the loss squares it, and float32 ends at 3.4e38
_MAX_VALUES = 32_000_000  # of a JSON file: 6 GB of memory at worst; a gigabyte of SQuAD's form has 25 million


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: its fields by column name, and its location in the file."""

    fields: Mapping[str, str]
    location: str  # "FILE line N", for messages


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, decompressed if necessary, without a byte order mark.

    Raises:
      UserError: if the file is missing, damaged or not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}: check the data directory and the file's name")
    content = bytearray()
    for stream in open_texts(str(path)):
        while block := stream.read(1 << 20):
            content += block
            if len(content) > _MAX_BYTES:
                raise UserError(f"{path}: holds more than {_MAX_BYTES >> 30} GiB of text: split the file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not UTF-8 text: convert the file to UTF-8") from error


def read_start(path: Path) -> str:
    """Return the first characters of a file's text, without its byte order mark; "" if there is no such file.

    Raises:
      UserError: if the file cannot be opened.
    """
    if not path.is_file():
        return ""
    return next((stream.peek(_START).decode("utf-8-sig", "replace") for stream in open_texts(str(path))), "")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, from 1.

    Only a line feed ends a line; a carriage return before it is dropped. `str.splitlines` would also split at U+2028
    and similar characters, which GLUE's texts contain.
    """
    text = read_text(path).removesuffix("\n")
    number, start = 1, 0
    while (end := text.find("\n", start)) >= 0:  # a list of the lines would take the memory of the text again
        yield number, text[start:end].removesuffix("\r")
        number, start = number + 1, end + 1
    yield number, text[start:].removesuffix("\r")


def read_tsv(path: Path, *, columns: Sequence[str] = (), skip_malformed: bool = False) -> Iterator[Row]:
    """Yield the rows of a tab-separated file. Quotes are ordinary characters.

    The first line names the columns unless `columns` does. With `skip_malformed`, rows with a wrong number of columns
    are skipped.

    Raises:
      UserError: for a row with a wrong number of columns, with its line number.
    """
    names = list(columns)
    for number, line in numbered_lines(path):
        fields = line.split("\t")
        if not names:
            names = [name.strip() for name in fields]
            continue
        if len(fields) != len(names):
            if skip_malformed or not line:
                continue
            raise UserError(
                f"{path} line {number}: {counted(len(fields), 'column')}, expected {len(names)} ({', '.join(names)}): "
                "fix the line; fields are separated by single tabs"
            )
        yield Row(dict(zip(names, fields, strict=True)), f"{path} line {number}")


def read_json(path: Path, *, form: Any = Any, remedy: str = "download or write the file again") -> Any:
    """Return the content of a JSON file as `form` describes it (see `json_forms`).

    Raises:
      UserError: if it is missing, not JSON, or something else than `form`; `remedy` says what to do.
    """
    try:
        value = parse_json(read_text(path), max_values=_MAX_VALUES)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): {remedy}") from error
    return fitted(value, form, file=path, remedy=remedy)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON Lines file, each with its location ("FILE line N").

    Raises:
      UserError: for a line that is not a JSON object, with its number.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        location = f"{path} line {number}"
        try:
            record = parse_object(line)
        except ValueError as error:
            raise UserError(f"{location}: {error}: write one JSON object per line, {{...}}") from None
        yield location, record


def column(row: Row, name: str) -> str:
    """Return the field of a row in a column.

    Raises:
      UserError: if the table has no such column.
    """
    if name not in row.fields:
        raise UserError(f"{row.location}: there is no column {name!r}; the columns are {', '.join(row.fields)}")
    return row.fields[name]


def finite_number(value: Any, *, location: str, name: str) -> float:
    """Return a field as a number.

    Raises:
      UserError: if it is not a number, or not finite, or so large that its square overflows.
    """
    try:
        number = None if isinstance(value, bool) else float(value)
    except OverflowError:
        number = _LARGEST * 10
    except (TypeError, ValueError):
        number = None
    if number is None or not math.isfinite(number):
        raise UserError(f"{location}: {shown(value)} is not a number: fix column {name}")
    if abs(number) > _LARGEST:
        raise UserError(
            f"{location}: {shown(value)} is beyond {_LARGEST:g}, the largest number that is computed with: scale "
            f"column {name}, or fix the record"
        )
    return number
