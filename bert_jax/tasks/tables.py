"""Reader of tables of custom data: comma- or tab-separated text with a header line, quoted as the csv module quotes."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from bert_jax.data.tables import fields_up_to
from bert_jax.errors import UserError
from bert_jax.tasks.files import Row, read_text

SUFFIXES = (".csv", ".tsv")
_LONGEST_FIELD = 1 << 30  # characters


def read_table(path: Path) -> list[Row]:
    """Return the rows of a table. The first line names the columns; blank lines are skipped.

    A field in double quotes may contain delimiters, line breaks and doubled quotes, as pandas and spreadsheets write
    it. In a .tsv file quotes are ordinary characters if they do not fit these rules and each line is a row (GLUE's
    files, for example). A .csv file may use semicolons or tabs: the header line decides.

    Raises:
      UserError: for a row with a wrong number of columns or a wrong quote, with its line, or two columns of one name.
    """
    with fields_up_to(_LONGEST_FIELD):
        return _table(read_text(path), path=path)


def _table(text: str, *, path: Path) -> list[Row]:
    delimiter = _delimiter(path, header=text.partition("\n")[0])
    try:
        rows = list(_rows(text, path=path, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL))
    except UserError:
        if ".tsv" in path.suffixes and (plain := _plain_rows(text, path=path, delimiter=delimiter)):
            return plain
        raise
    if ".tsv" in path.suffixes and '"' in text:
        _check_closed_quotes(rows, plain=_plain_rows(text, path=path, delimiter=delimiter))
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


def _delimiter(path: Path, *, header: str) -> str:
    if ".csv" not in path.suffixes:
        return "\t"
    return next((mark for mark in ",;\t" if mark in header), ",")


def _plain_rows(text: str, *, path: Path, delimiter: str) -> list[Row]:
    """Return the rows if quotes are ordinary characters, or an empty list if a line then has too few or many fields."""
    try:
        return list(_rows(text, path=path, delimiter=delimiter, quoting=csv.QUOTE_NONE))
    except UserError:
        return []


def _rows(text: str, *, path: Path, delimiter: str, quoting: Literal[0, 3]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    names: list[str] = []
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path} line {line}: {error}: fix the line or its quotes") from error
        location, line = f"{path} line {line}", reader.line_num + 1
        if not fields:
            continue
        if not names:
            names = [name.strip() for name in fields]
            _check_names(names, location=location)
            continue
        if len(fields) != len(names):
            raise UserError(
                f"{location}: {len(fields)} columns, expected {len(names)} ({', '.join(names)}): fix the line; a field "
                f'that contains {"a tab" if delimiter == chr(9) else repr(delimiter)} needs "double quotes"'
            )
        yield Row(dict(zip(names, fields, strict=True)), location)


def _check_names(names: list[str], *, location: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise UserError(f"{location}: two columns are called {twice[0]!r}: give each column its own name")
