"""Tables of custom data are read as the csv module reads them; what is ambiguous or wrong is one line."""

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.tables import read_table
from tests.texts import paragraphs_of


def fields(path: Path, text: str) -> list[list[str]]:
    path.write_text(text, newline="")
    return [list(row.fields.values()) for row in read_table(path)]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_what_the_csv_module_writes_is_read_back(tmp_path: Path, suffix: str):
    """Quotes, delimiters and line breaks inside fields, in two hundred random tables."""
    rng = random.Random(0)
    pieces = ['"', '""', ",", "\n", "\r\n", ";", "a", "it's", "日本", " ", "#", "\u2028"]
    pieces += ["\t"] * (suffix == "csv")  # in a .tsv file a tab and a line break in one field may be refused: see below
    for number in range(100):
        rows = [["".join(rng.choices(pieces, k=rng.randint(1, 8))) + "x", str(i)] for i in range(rng.randint(1, 6))]
        stream = io.StringIO(newline="")
        quoting: Any = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        csv.writer(stream, delimiter=",\t"[suffix == "tsv"], quoting=quoting).writerows([["text", "label"], *rows])
        assert fields(tmp_path / f"{number}.{suffix}", stream.getvalue()) == rows, number


def test_quotes_that_quote_nothing_are_ordinary_characters(tmp_path: Path):
    """A field that only begins with a quote, and a quote that would swallow the following rows."""
    lines = ['"good" film\t1', 'a "bad" one\t0', '"never closed\t1', "x\t0", '5" tall"\t1']
    rows = [line.split("\t") for line in lines]
    assert fields(tmp_path / "a.tsv", "text\tlabel\n" + "\n".join(lines) + "\n") == rows
    with pytest.raises(UserError, match=r"b.tsv line 3: its quoted field contains whole lines that are rows"):
        fields(tmp_path / "b.tsv", 'text\tlabel\nx\t1\n"a\t0\nb\t1\nc"\t0\n')
    quoted = 'text\tlabel\n"first\nsecond\tline"\t0\nx\t1\n'
    assert fields(tmp_path / "c.tsv", quoted) == [["first\nsecond\tline", "0"], ["x", "1"]]


def test_the_header_decides_the_delimiter_of_a_csv_file(tmp_path: Path):
    for mark in ",;\t|":
        assert fields(tmp_path / "a.csv", f"\ufefftext{mark}label\n\nx{mark}1\n") == [["x", "1"]]
    assert fields(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",1\n") == [["x" * 200_000, "1"]]
    assert csv.field_size_limit() == 131_072


def test_a_table_is_read_alike_for_a_corpus_and_for_a_task(tmp_path: Path):
    """What decides the delimiter, and quotation marks behind a backslash, in both readers."""
    tables = {
        "marks in the header": "text;a,b\nA mill, a weir.;1\nOne, two, three.;2\n",
        "bars": "text|label\nOne, two; three.|1\n",
        "tabs": "text\tlabel\nOne, two; three.\t1\n",
        "backslashes": 'text,label\n"He said \\"no\\", twice.",1\n',
    }
    for name, table in tables.items():
        path = tmp_path / f"{name}.csv"
        texts = [row[0] for row in fields(path, table)]
        assert texts == [text for (text,) in paragraphs_of(path)], name
    assert texts == ['He said "no", twice.']


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("text,label\na,b,1\n", r"line 2: 3 columns, expected 2 \(text, label\): .* contains ',' needs \"double"),
        ("text,text\na,b\n", "line 1: two columns are called 'text'"),
        ('text,label\n"a,b\n', "line 2: unexpected end of data"),
        ('text,label\n"a\nb",1\nc\n', r"line 4: 1 column, expected 2"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, text: str, match: str):
    with pytest.raises(UserError, match=match) as error:
        fields(tmp_path / "a.csv", text)
    assert "\n" not in str(error.value)
