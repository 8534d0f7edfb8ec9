"""Rows of delimited text (CSV, TSV): how they are written, and in a corpus the text of each, which is a document.

`find_dialect` and `delimited_rows` serve the readers of custom data, too (`tasks/tables.py`).
"""

import contextlib
import csv
import dataclasses
import itertools
import re
from collections.abc import Generator, Iterable, Iterator, Sequence

from bert_jax.data.lines import MAX_WHOLE_LINE, OVERLONG, read_lines
from bert_jax.data.opening import ByteStream
from bert_jax.data.prose import read_document
from bert_jax.data.source import NoTextError, ReadReport, alternatives, others_and
from bert_jax.errors import UserError

SAMPLE_LINES = 200
CSV_DELIMITERS = ",;\t|"  # of a .csv file; the first where its lines do not decide
# Rows of a table that is recognized by its content alone. Lines of verse or of an address may have as many commas.
_MIN_ROWS = {"\t": 3}
_MIN_ROWS_OF_MARKS = 6
_CONSISTENT = 0.9  # fraction of a table's rows with as many cells as the header
_HEADER_CELL = re.compile(r"[\w./:#()-]{1,40}")
_MOST_SUGGESTED = 12  # columns in a message
_END = "\0"  # a line after the last one: no text contains it


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How the rows of a table are written."""

    delimiter: str = ","
    quoted: bool = True  # cells may be in quotation marks
    escaped: bool = False  # a quotation mark within them is written as a backslash and a quotation mark


@contextlib.contextmanager
def _fields_up_to(num_chars: int) -> Iterator[None]:
    """Set the csv module's limit, which is 131,072 for the whole process, to `num_chars` characters per field."""
    limit = csv.field_size_limit(num_chars)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def find_dialect(lines: Sequence[str], *, name_says_table: bool, delimiters: str = CSV_DELIMITERS) -> Dialect | None:
    """Return how the rows of a table are written; None if the lines are not a table.

    The delimiter is the one that gives most rows as many cells as the first row. Without a name that says so, text is a
    table if nearly all its rows agree, there are enough of them, and the first row contains names: short, different,
    and without white space.
    """
    sample = lines[:SAMPLE_LINES]
    escaped = sum(line.count('\\"') for line in sample) > sum(line.count('""') for line in sample)
    best: tuple[float, float] = (0.0, 0.0)
    result = Dialect(delimiters[0]) if name_says_table else None
    for delimiter in delimiters:
        for quoted in (True, False):
            dialect = Dialect(delimiter, quoted, escaped and quoted)
            rows = list(_rows(sample, dialect))
            width = len(rows[0]) if rows else 0
            consistent = sum(len(row) == width for row in rows) / max(len(rows), 1)
            if width < 2 or (consistent < _CONSISTENT and not name_says_table):
                continue
            enough = len(rows) >= _MIN_ROWS.get(delimiter, _MIN_ROWS_OF_MARKS)
            is_table = name_says_table or (enough and _is_header(rows[0]))
            if is_table and (consistent, width) > best:
                best, result = (consistent, width), dialect
    return result


def _is_header(row: Sequence[str]) -> bool:
    return len(set(row)) == len(row) and all(_HEADER_CELL.fullmatch(cell) for cell in row)


def _rows(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    return (row for _, row in delimited_rows((line + "\n" for line in lines), dialect))


def delimited_rows(
    lines: Iterable[str], dialect: Dialect, *, strict: bool = False
) -> Generator[tuple[int, list[str]], None, None]:
    """Yield the cells of each row that is not blank, and the number of the line that it begins in; lines have ends.

    A cell has at most `MAX_WHOLE_LINE` characters. With `strict`, a cell in quotation marks ends with its last one.

    Raises:
      csv.Error: with the row's line.
    """
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE,
        escapechar="\\" if dialect.escaped else None,
        doublequote=not dialect.escaped,
        strict=strict,
    )
    line = 1
    with _fields_up_to(MAX_WHOLE_LINE):
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            raise csv.Error(f"line {line}: {error}") from None


def read_table(stream: ByteStream, *, dialect: Dialect, column: str, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs of the text of each row, and None after each row.

    The first row names the columns, unless `column` is a number and not one of the names.

    Raises:
      NoTextError: if there is no such column; names the columns.
      UserError: if most rows have another number of cells than the first one.
    """
    lines = (line for batch in read_lines(stream, report=report, whole=True) for line in batch)
    rows = _rows(itertools.chain((line for line in lines if line is not OVERLONG), [_END]), dialect)
    number, num_broken, first_broken, width, index, closed = 0, 0, "", 0, 0, False
    try:
        for row in rows:
            closed = row == [_END]
            if closed:
                break
            number += 1
            if number == 1:
                width = len(row)
                index, has_header = find_column([cell.strip() for cell in row], column, name=stream.name, row=row)
                if has_header:
                    continue
            if len(row) != width:
                num_broken += 1
                first_broken = first_broken or f"row {number} has {len(row)} cells, the first one {width}"
                report.add_problem(f"{stream.name}: row {number} has {len(row)} cells instead of {width}")
                continue
            if row[-1].endswith(f"{_END}\n"):
                break
            yield from read_document(row[index], report=report)
    except csv.Error:  # a cell is longer than any text
        closed = False
    if not closed:
        raise UserError(
            f"{stream.name}: a quotation mark that opens in row {max(number, 1)} or before is not closed: fix it, or "
            "leave the file out of the input"
        )
    report.broken_rows += num_broken
    if 2 * num_broken > number:
        raise UserError(
            f"{stream.name}: most rows have another number of cells than the first one ({first_broken}): quote cells "
            "that contain the delimiter, or set data.format=prose if it is not a table"
        )


def find_column(names: Sequence[str], column: str, *, name: str, row: Sequence[str] = ()) -> tuple[int, bool]:
    """Return the index of a column and whether the first row names the columns.

    Raises:
      NoTextError: if it does not exist.
    """
    lower = [other.lower() for other in names]
    for choice in alternatives(column):
        if choice in names:
            return names.index(choice), True
        if lower.count(choice.lower()) == 1:
            return lower.index(choice.lower()), True
    if row and column.isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1, False
    shown = ", ".join(names[:_MOST_SUGGESTED]) + (", ..." if len(names) > _MOST_SUGGESTED else "")
    raise NoTextError(
        f"{name} is a table without a column '{column}': type "
        f"--config.data.text_column={others_and(column)}NAME (columns: {shown:.300}"
        + ("; or its number, where the first row is not a header)" if row else ")")
    )
