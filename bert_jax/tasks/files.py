"""Read text files line by line, with the line number in every complaint."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.data.opening import open_texts
from bert_jax.errors import UserError
from bert_jax.files import parse_json, parse_object


@dataclasses.dataclass(frozen=True)
class Row:
    """Hold a row of a table: its fields by column name, and where it stands."""

    fields: Mapping[str, str]
    place: str  # "FILE line N", for messages


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, decompressed where it is compressed, without a byte order mark.

    Raises:
      UserError: if it is missing, damaged or no UTF-8.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}: check the data directory and the file's name")
    content = b""
    for stream in open_texts(str(path)):
        while block := stream.read(1 << 20):
            content += block
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not UTF-8 text: convert the file to UTF-8") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers from 1.

    Only a line feed ends a line (a carriage return before it is dropped): GLUE's texts hold U+2028 and its like.
    """
    text = read_text(path)
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def read_tsv(path: Path, *, columns: Sequence[str] = (), skip_malformed: bool = False) -> Iterator[Row]:
    """Yield the rows of a tab-separated file, quotes being ordinary characters.

    The first line names the columns unless `columns` does. With `skip_malformed`, rows of another number of columns are
    left out.

    Raises:
      UserError: for a row of another number of columns, with its line number.
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
                f"{path} line {number}: {len(fields)} columns where {len(names)} are expected ({', '.join(names)}): "
                "mend the line; fields are parted by single tabs"
            )
        yield Row(dict(zip(names, fields, strict=True)), f"{path} line {number}")


def read_csv(path: Path) -> Iterator[Row]:
    """Yield the rows of a comma-separated file with a header line, quotes enclosing fields.

    Raises:
      UserError: for a row of another number of columns, or that is no CSV, with its line number.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    names: list[str] = []
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: {error}: mend the line, or its quotes") from error
        if not names:
            names = fields
            continue
        if len(fields) != len(names):
            raise UserError(
                f"{path} line {reader.line_num}: {len(fields)} columns where {len(names)} are expected: mend the line"
            )
        yield Row(dict(zip(names, fields, strict=True)), f"{path} line {reader.line_num}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
      UserError: if it is missing or no JSON.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}): fetch or make the file again") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON-lines file, each with its place.

    Raises:
      UserError: for a line that is no JSON object, with its number.
    """
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = parse_object(line)
        except ValueError as error:
            raise UserError(f"{place}: {error}: write one JSON object per line, {{...}}") from None
        yield place, record


def column(row: Row, name: str) -> str:
    """Return a field of a row.

    Raises:
      UserError: if the table has no such column.
    """
    if name not in row.fields:
        raise UserError(f"{row.place}: there is no column {name!r}; the columns are {', '.join(row.fields)}")
    return row.fields[name]


def finite_number(written: Any, *, place: str, name: str) -> float:
    """Return a field as a number.

    Raises:
      UserError: if it is none, or NaN or infinite.
    """
    try:
        number = float(written)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {written!r} is not a number: mend column {name}")
    return number
