"""Rows of cells in files not named as tables: tables with bars as borders, rows without a header, tagged words."""

import re
from collections import Counter
from collections.abc import Sequence

_SAMPLE_LINES = 400
_MOST = 0.9  # fraction of the lines that are rows; the prose around a table is more than the rest
_ALMOST_ALL = 0.95  # fraction of the cells of a column
_MIN_ROWS = 6
_TITLE = 80  # characters; a longer line is prose
_RULE = frozenset("|+-=: ")  # characters of the line below the header, in Markdown and on terminals
_CODE = re.compile(r"(?=\S*\d)[\w./:#()-]{1,80}")  # an id or a file name: no white space, but a digit
_MIN_TAGGED = 10  # lines
_TAG = re.compile(r"[BIESULM]-\S+|O")  # of entities
_PART_OF_SPEECH = re.compile(r"[A-Z]{1,6}\d?\$?")  # of the Penn treebank, of Universal Dependencies, of STTS
_MARK = re.compile(r"[^\w\s]{1,4}|-[LR]RB-")
_MOST_PARTS = 0.6  # of the words of a text
_MIN_TAGS, _MAX_TAGS = 3, 60  # a tag set is small; the words of a text in capitals are many
_ROWS_PER_TAG = 3
_PROSE = "type --config.data.format=prose if it is prose"


def why_not_prose(lines: Sequence[str]) -> str:
    """Return what to do with a text that is rows of cells, "" for prose.

    Nearly all its lines must be rows: a table among prose, a few bars, verse, code and lists of words are prose.
    """
    rows = _rows(lines)
    if _has_borders(rows):
        return f"a table with bars as borders, not prose: save its rows as CSV and name the text's column, or {_PROSE}"
    if width := _bar_columns(rows):
        return (
            f"it looks like a table of {width} columns without a header, separated by '|': type "
            f"--config.data.format=csv --config.data.text_column=N, the number of the text's column from 1; {_PROSE}"
        )
    if is_tagged(lines):
        return (
            "it looks like tagged words, one per line: write the words of each sentence into one line without their "
            f"tags (finetune reads tagged words as they are), or {_PROSE}"
        )
    return ""


def _rows(lines: Sequence[str]) -> list[str]:
    return [text for line in lines[:_SAMPLE_LINES] if (text := line.strip())]


def _has_borders(rows: Sequence[str]) -> bool:
    """Return whether lines are a table of Markdown, or as terminals show it."""
    rules = sum(map(_is_rule, rows))
    others = [row for row in rows if not _is_rule(row) and not (row[0] == row[-1] == "|")]
    is_most = len(rows) - len(others) >= max(3, _MOST * len(rows))
    return rules > 0 and is_most and all(len(row) < _TITLE for row in others)


def _is_rule(row: str) -> bool:
    return "--" in row and row[0] in "|+" and row[-1] in "|+" and _RULE.issuperset(row)


def _regular(rows: Sequence[list[str]]) -> tuple[int, list[list[str]]]:
    """Return the most frequent number of cells, and the rows with as many."""
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    return width, [row for row in rows if len(row) == width]


def _bar_columns(rows: Sequence[str]) -> int:
    """Return the number of columns between bars if one of them holds ids, else 0: verse may have bars, too."""
    cells = [row.split("|") for row in rows]
    width, regular = _regular(cells)
    if width < 2 or len(regular) < _MIN_ROWS or len(regular) < _MOST * len(rows):
        return 0
    has_ids = any(
        sum(_CODE.fullmatch(cell.strip()) is not None for cell in column) >= _ALMOST_ALL * len(regular)
        for column in zip(*regular, strict=True)
    )
    return width * has_ids


def is_tagged(lines: Sequence[str]) -> bool:
    """Return whether lines are a word and its tags, in two or more columns as in CoNLL's files."""
    words = [row.split() for row in _rows(lines) if not row.startswith(("#", "-DOCSTART-"))]
    width, regular = _regular(words)
    if width < 2 or len(regular) < _MIN_TAGGED or len(regular) < _MOST * len(words):
        return False
    return any(_are_tags(column) for column in zip(*regular, strict=True))


def _are_tags(column: Sequence[str]) -> bool:
    tags, number = Counter(column), len(column)
    entities = [tag for tag in tags if _TAG.fullmatch(tag)]
    if len(entities) > 1 and sum(tags[tag] for tag in entities) >= _ALMOST_ALL * number:
        return True
    parts = [tag for tag in tags if _PART_OF_SPEECH.fullmatch(tag)]
    marks = sum(tags[tag] for tag in tags if _MARK.fullmatch(tag))
    is_small_set = len(parts) >= _MIN_TAGS and len(tags) <= min(_MAX_TAGS, number / _ROWS_PER_TAG)
    return is_small_set and sum(tags[tag] for tag in parts) >= max(_ALMOST_ALL * number - marks, _MOST_PARTS * number)
