"""Rows of an input file: JSON lines, texts one per line, or a table with a header."""

import contextlib
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import IO, Any

from bert_jax.config.task_options import TYPED_FIELDS
from bert_jax.data.file_types import why_not_text
from bert_jax.data.formats import binary_format
from bert_jax.data.tables import CSV_DELIMITERS, SAMPLE_LINES, Dialect, delimited_rows, find_dialect
from bert_jax.errors import UserError
from bert_jax.json_files import parse_object
from bert_jax.prediction.plain_rows import is_plain
from bert_jax.progress import ByteProgress

_MAX_LINE = 32 << 20  # bytes
_LONGEST_LINE = 1 << 30  # bytes; the rest of a line over `_MAX_LINE` is skipped
_JSON = {".jsonl", ".ndjson", ".json"}
_DELIMITERS = {".csv": CSV_DELIMITERS, ".tsv": "\t"}

# Line, row (None if it is wrong), what is wrong.
Numbered = Iterator[tuple[int, Mapping[str, Any] | None, str]]


def numbered_rows(
    source: IO[bytes], *, name: str, task: str, columns: Mapping[str, str], progress: ByteProgress | None = None
) -> Numbered:
    """Yield each line's number, its row (None if it is wrong), and what is wrong with it.

    A name in .csv or .tsv is a table, one in .jsonl, .ndjson or .json JSON lines. Otherwise the first line says what
    the others are: JSON objects, or texts.
    `columns` names the column or key of each field which is not in a row by its own name.

    Raises:
      UserError: if the file is not text, or a table has no column of a field.
    """
    _check_text(source, name=name)
    lines = _lines(source, progress=progress)
    suffix = PurePath(name).suffix.lower()
    if suffix in _DELIMITERS:
        rows = _table_rows(lines, name=name, task=task, columns=columns, delimiters=_DELIMITERS[suffix])
    else:
        rows = _line_rows(lines, task=task, plain=False if suffix in _JSON else None)
    for number, row, problem in rows:
        yield number, None if row is None else _with_fields(row, columns), problem


def _check_text(source: IO[bytes], *, name: str) -> None:
    peek = getattr(source, "peek", None)  # standard input may be replaced by a stream without it
    head = peek(512)[:512] if peek else b""
    reason = why_not_text(head, name=name) or binary_format(head) or ("it has NUL bytes" if b"\0" in head else "")
    if reason:
        raise UserError(f"--input={name}: this is not text ({reason}): give JSON lines, texts one per line, or CSV")


def _with_fields(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    return {**row, **{field: row[column] for field, column in columns.items() if field not in row and column in row}}


def _line_rows(lines: Iterator[bytes], *, task: str, plain: bool | None) -> Numbered:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if plain is None:
            plain = is_plain(task, line)
        if plain and _is_object(line):
            yield number, None, "is a JSON object, the first line is text: name the file .jsonl, or begin it with a row"
        elif plain:
            yield number, {"text": line.decode("utf-8", "replace").rstrip("\r\n")}, ""
        else:
            yield number, *_json_row(line)


def _json_row(line: bytes) -> tuple[Mapping[str, Any] | None, str]:
    """Return the row of a JSON line (None if it is wrong), and what is wrong with it."""
    try:
        return parse_object(line, allow_nan=False), ""
    except ValueError as error:
        return None, f'is {error}; write an object, as in {{"text": "..."}}'


def _is_object(line: bytes) -> bool:
    """Return whether a line is a JSON object, which no text looks like by accident."""
    if not line.lstrip().startswith(b"{"):
        return False
    with contextlib.suppress(ValueError):
        return bool(parse_object(line))
    return False


def _table_rows(
    lines: Iterator[bytes], *, name: str, task: str, columns: Mapping[str, str], delimiters: str
) -> Numbered:
    texts = (line.decode("utf-8", "replace").removeprefix("\ufeff") for line in lines)  # Excel's mark of UTF-8
    sample = list(itertools.islice(texts, SAMPLE_LINES))
    first = [line.rstrip("\r\n") for line in sample]
    dialect = find_dialect(first, name_says_table=True, delimiters=delimiters) or Dialect(delimiters[0])
    header: list[str] = []
    try:
        for number, cells in delimited_rows(itertools.chain(sample, texts), dialect):
            if not header:
                header = [cell.strip() for cell in cells]
                _check_header(header, name=name, task=task, columns=columns)
            elif len(cells) != len(header):
                yield number, None, f"has {len(cells)} columns, the first line {len(header)}"
            else:
                yield number, dict(zip(header, cells, strict=True)), ""
    except csv.Error as error:
        raise UserError(f"--input={name}: {error}: fix the line or its quotes") from None


def _check_header(header: Sequence[str], *, name: str, task: str, columns: Mapping[str, str]) -> None:
    for field in TYPED_FIELDS.get(task, ()):
        others = {"tag": "words", "embed": "text_a", "features": "text_a"}  # fields that may replace the text
        if field in header or columns.get(field) in header or others.get(task) in header:
            continue
        raise UserError(
            f"--input={name}: the table has no column {field!r} (columns: {', '.join(header)[:300]}): the first line "
            f"names the columns; call that of the {field.replace('_', ' ')} {field!r}"
        )


def _lines(source: IO[bytes], *, progress: ByteProgress | None) -> Iterator[bytes]:
    """Yield the lines of a file; of a line longer than `_MAX_LINE` only its beginning, which is not JSON.

    Raises:
      UserError: for a line that does not seem to end, as in /dev/zero.
    """
    while line := source.readline(_MAX_LINE):
        if progress is not None:
            progress.advance(len(line))
        yield line
        size = len(line)
        while len(line) == _MAX_LINE and not line.endswith(b"\n"):
            line = source.readline(_MAX_LINE)
            size += len(line)
            if size > _LONGEST_LINE:
                raise UserError(f"a line of more than {_LONGEST_LINE >> 30} GiB: this input is not text")
