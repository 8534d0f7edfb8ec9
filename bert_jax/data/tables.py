"""Rows of delimited text (CSV, TSV): how they are written, and in a corpus the text of each, which is a document.

`find_dialect` and `delimited_rows` serve the readers of custom data, too (`tasks/tables.py`).
"""

import contextlib
import csv
import dataclasses
import itertools
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from bert_jax.data.lines import MAX_WHOLE_LINE, OVERLONG, read_lines
from bert_jax.data.opening import ByteStream
from bert_jax.data.prose import read_document
from bert_jax.data.source import NoTextError, ReadReport, alternatives, others_and
from bert_jax.errors import UserError, counted

SAMPLE_LINES = 200
CSV_DELIMITERS = ",;\t|"  # of a .csv file; the first where its lines do not decide
# Rows of a table that is recognized by its content alone. Lines of verse or of an address may have as many commas.
_MIN_ROWS = {"\t": 3}
_MIN_ROWS_OF_MARKS = 6
_CONSISTENT = 0.9  # fraction of a table's rows with as many cells as the header
_HEADER_CELL = re.compile(r"[\w./:#()-]{1,40}")
_MOST_SUGGESTED = 12  # columns in a message
_ENOUGH_TEXTS = 100  # at the start of a column: if these are values, so are the others
_FEW_WORDS = 0.05  # of the texts in a column of values
_LONG_TEXT = 1000  # characters; no column of values has one
_MAX_VALUE_CHARS = 60
# Digits with signs, separators and currencies; an exponent or unit of at most two letters; times as in ISO 8601.
_VALUE = re.compile(
    r"[^\w\s]{0,2}\d(?:[\d.,:/ _+-]|(?<=\d)T(?=\d))*(?:[eE][+-]?\d+|Z|%| ?[^\w\s])?|true|false|nan|null|none|n/a|-?inf",
    re.IGNORECASE,
)
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
            # White space next to a bar is layout; after a comma it is prose.
            header = [cell.strip() for cell in rows[0]] if delimiter == "|" else rows[0]
            is_table = name_says_table or (enough and _is_header(header))
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
    names: list[str] = []

    def advice() -> str:
        return f"type --config.data.text_column={others_and(column)}NAME (columns: {_shown(names)})"

    texts = _column_texts(rows, stream=stream, column=column, report=report, names=names)
    for text in texts_or_refusal(texts, file=stream.name, column=column, advice=advice, report=report):
        yield from read_document(text, report=report)


def _column_texts(
    rows: Iterator[list[str]], *, stream: ByteStream, column: str, report: ReadReport, names: list[str]
) -> Iterator[tuple[int, str]]:
    """Yield the number of each row from 1 and its text; `names` gets the columns."""
    number, num_broken, first_broken, width, index, closed = 0, 0, "", 0, 0, False
    try:
        for row in rows:
            closed = row == [_END]
            if closed:
                break
            number += 1
            if number == 1:
                width = len(row)
                names += [cell.strip() for cell in row]
                index, has_header = find_column(names, column, name=stream.name, row=row)
                if has_header:
                    continue
            if len(row) != width:
                num_broken += 1
                report.broken_rows += 1
                first_broken = first_broken or f"row {number} has {len(row)} cells, the first one {width}"
                report.skip_row(stream.name, f" row {number} has {len(row)} cells instead of {width}")
                continue
            if row[-1].endswith(f"{_END}\n"):
                break
            yield number, row[index]
    except csv.Error:  # a cell is longer than any text
        closed = False
    if not closed:
        raise UserError(
            f"{stream.name}: a quotation mark that opens in row {max(number, 1)} or before is not closed: fix it, or "
            "leave the file out of the input"
        )
    if 2 * num_broken > number:
        raise UserError(
            f"{stream.name}: most rows have another number of cells than the first one ({first_broken}): quote cells "
            "that contain the delimiter, or set data.format=prose if it is not a table"
        )


def texts_or_refusal(
    texts: Iterable[tuple[int, str | None]], *, file: str, column: str, advice: Callable[[], str], report: ReadReport
) -> Iterator[str]:
    """Yield the texts of a table's column, given with their rows' numbers; those that are empty or null are counted.

    Raises:
      NoTextError: if it has rows but no text, or its first texts are numbers, dates or truth values.
    """
    before, first, num_words = report.empty_rows, [], 0
    filled = _filled(texts, file=file, report=report)
    for text in filled:
        first.append(text)
        num_words += not is_value(text)
        if len(first) >= _ENOUGH_TEXTS or num_words > _FEW_WORDS * _ENOUGH_TEXTS or len(text) > _LONG_TEXT:
            break
    if first and num_words <= _FEW_WORDS * len(first) and len(first[-1]) <= _LONG_TEXT:
        raise NoTextError(
            f"{file}: column '{column}' holds values such as {first[0].strip()[:40]}, not text: {advice()}"
        )
    if not first and (num_rows := report.empty_rows - before):
        raise NoTextError(f"{file}: column '{column}' has no text in any of its {counted(num_rows, 'row')}: {advice()}")
    yield from first
    yield from filled


def _filled(texts: Iterable[tuple[int, str | None]], *, file: str, report: ReadReport) -> Iterator[str]:
    for number, text in texts:
        if text and not text.isspace():
            yield text
        else:
            report.empty_rows += 1
            report.skip_row(file, f" row {number} has no text")


def is_value(text: str) -> bool:
    """Return whether a text is a number, a date or a truth value."""
    text = text.strip()
    return len(text) <= _MAX_VALUE_CHARS and _VALUE.fullmatch(text) is not None


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
    raise NoTextError(
        f"{name} is a table without a column '{column}': type "
        f"--config.data.text_column={others_and(column)}NAME (columns: {_shown(names)}"
        + ("; or its number, where the first row is not a header)" if row else ")")
    )


def _shown(names: Sequence[str]) -> str:
    return (", ".join(names[:_MOST_SUGGESTED]) + (", ..." if len(names) > _MOST_SUGGESTED else ""))[:300]
