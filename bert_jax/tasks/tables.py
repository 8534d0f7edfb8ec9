"""Reader of tables of tasks: comma- or tab-separated text with a header line, quoted as the csv module quotes."""

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bert_jax.data.tables import CSV_DELIMITERS, SAMPLE_LINES, Dialect, delimited_rows, find_dialect
from bert_jax.errors import UserError, counted
from bert_jax.tasks.files import Row, read_text

SUFFIXES = (".csv", ".tsv")
_SAMPLE = 1 << 20  # characters whose lines decide the delimiter


def read_table(path: Path, *, delimiters: str = "") -> list[Row]:
    """Return the rows of a table. The first line names the columns; blank lines are skipped.

    A field in double quotes may contain delimiters, line breaks and doubled quotes, as pandas and spreadsheets write
    it. In a .tsv file quotes are ordinary characters if they do not fit these rules and each line is a row (GLUE's
    files, for example). A .csv file may use semicolons, tabs or bars: the header and the first lines decide, unless
    `delimiters` does.

    Raises:
      UserError: for a row with a wrong number of columns or a wrong quote, with its line, or two columns of one name.
    """
    text = read_text(path)
    delimiters = delimiters or (CSV_DELIMITERS if ".csv" in path.suffixes else "\t")
    dialect = find_dialect(_first_lines(text), name_says_table=True, delimiters=delimiters) or Dialect(delimiters[0])
    return _table(text, path=path, dialect=dialect)


def _first_lines(text: str) -> list[str]:
    return text[:_SAMPLE].replace("\r\n", "\n").replace("\r", "\n").split("\n")[:SAMPLE_LINES]


def _table(text: str, *, path: Path, dialect: Dialect) -> list[Row]:
    quoted, plain = Dialect(dialect.delimiter), Dialect(dialect.delimiter, quoted=False)
    try:
        rows = list(_rows(text, path=path, dialect=quoted))
    except UserError:
        others = [dialect] * dialect.escaped + [plain] * (".tsv" in path.suffixes)
        for other in others:
            if rows := _rows_or_none(text, path=path, dialect=other):
                return rows
        raise
    if ".tsv" in path.suffixes and '"' in text:
        _check_closed_quotes(rows, plain=_rows_or_none(text, path=path, dialect=plain))
    return rows


def _check_closed_quotes(rows: list[Row], *, plain: list[Row]) -> None:
    """Check that no quoted field contains whole rows: its quote may be an ordinary character."""
    if len(rows) >= len(plain):
        return
    index = next(i for i, row in enumerate(plain) if i >= len(rows) or rows[i].location != row.location)
    raise UserError(
        f"{plain[max(index - 1, 0)].location}: its quoted field contains whole lines that are rows themselves: if the "
        "quote is an ordinary character, double it and put the field in quotes; if the field has several lines, write "
        "the file as .csv"
    )


def _rows_or_none(text: str, *, path: Path, dialect: Dialect) -> list[Row]:
    """Return the rows, none if one of them has too few or many fields or is written in another way."""
    try:
        return list(_rows(text, path=path, dialect=dialect))
    except UserError:
        return []


def _rows(text: str, *, path: Path, dialect: Dialect) -> Iterator[Row]:
    names: list[str] = []
    with contextlib.closing(delimited_rows(io.StringIO(text, newline=""), dialect, strict=True)) as rows:
        try:
            for line, fields in rows:
                location = f"{path} line {line}"
                if not names:
                    names = [name.strip() for name in fields]
                    _check_names(names, location=location)
                    continue
                if len(fields) != len(names):
                    mark = "a tab" if dialect.delimiter == "\t" else repr(dialect.delimiter)
                    raise UserError(
                        f"{location}: {counted(len(fields), 'column')}, expected {len(names)} ({', '.join(names)}): "
                        f'fix the line; a field that contains {mark} needs "double quotes"'
                    )
                yield Row(dict(zip(names, fields, strict=True)), location)
        except csv.Error as error:
            raise UserError(f"{path} {error}: fix the line or its quotes") from error


def _check_names(names: list[str], *, location: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise UserError(f"{location}: two columns are called {twice[0]!r}: give each column its own name")
