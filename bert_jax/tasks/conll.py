"""Reader of files in columns, one word per line, as in the CoNLL shared tasks.

* Columns are separated by tabs if each line has one, else by spaces or tabs. A no-break space is part of a word.
* A blank line ends a sentence. A line that begins with -DOCSTART-, or a comment `# newdoc`, begins a document.
* In a file without such lines every sentence is a document: nothing says which sentences belong together.
* Comments are skipped: lines that begin with # and have not the columns of a row (`# text = ...` of CoNLL-U).
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_jax.errors import UserError, counted
from bert_jax.tasks.entity_metrics import (
    CHUNKS,
    PLAIN,
    is_chunk_tag,
    misspelled,
    misspelling,
    normalized_tags,
    scheme_of,
)
from bert_jax.tasks.files import numbered_lines

_DOCUMENT = "-DOCSTART-"
_NEW_DOCUMENT = re.compile(r"#\s*newdoc\b")
_WHITE = re.compile(r"[ \t]+")
_KEY = re.compile(r"#\s*[\w.:-]+\s*=")
_INDEX = re.compile(r"([0-9]+)(?:[-.][0-9]+)?")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words, their tags (entities as IOB2), and the index of their document. Without labels all tags are O."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int
    file_tags: tuple[str, ...] = ()  # the tags as the file has them, for messages
    location: str = ""  # in the file, for messages
    labeled: bool = True


@dataclasses.dataclass(frozen=True)
class _Row:
    number: int  # of the line
    columns: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the lines of a file are split: all have `width` columns."""

    tabs: bool
    width: int

    @classmethod
    def of(cls, lines: Sequence[tuple[int, str]]) -> "_Layout":
        """Return the layout that the lines without # show."""
        rows = [line for _, line in lines if line.strip() and not line.startswith(("#", _DOCUMENT))]
        layout = cls(bool(rows) and all("\t" in line.rstrip(" \t") for line in rows), 0)
        return dataclasses.replace(layout, width=len(layout.split(rows[0])) if rows else 2)

    def split(self, line: str) -> list[str]:
        """Return the columns of a line."""
        if self.tabs:
            return [column.strip(" ") for column in line.rstrip(" \t").split("\t")]
        return [column for column in _WHITE.split(line) if column]

    def is_comment(self, line: str, *, begins: bool) -> bool:
        """Return whether a line is a comment. `begins`: no word of its sentence has been read."""
        if not line.startswith("#"):
            return False
        columns = self.split(line)
        return len(columns) != self.width or (begins and not self.tabs and _KEY.match(line) is not None)


def num_columns(path: Path) -> int:
    """Return the number of columns of a file."""
    return _Layout.of(list(numbered_lines(path))).width


def read_conll(path: Path, *, tag_column: int, word_column: int = 0, scheme: str = "") -> list[Sentence]:
    """Return the sentences of a file. `scheme` is that of its tags (`entity_metrics.scheme_of`); empty: what they show.

    Raises:
      UserError: for a line with a wrong number of columns or an invalid tag, with its number, and if the words are a
        column of numbers or tags.
    """
    lines = list(numbered_lines(path))
    layout = _Layout.of(lines)
    blocks = list(_blocks(lines, path=path, layout=layout))
    for name, column in (("tag_column", tag_column), ("word_column", word_column)):
        if blocks and not -layout.width <= column < layout.width:
            raise UserError(
                f"config.ner.{name}={column}: {path} has {layout.width} columns: give a number from {-layout.width} to "
                f"{layout.width - 1}"
            )
    tags = [[row.columns[tag_column] for row in rows] for _, rows in blocks]
    shown = scheme_of(tags)
    words = [[row.columns[word_column] for row in rows] for _, rows in blocks]
    if blocks:
        _check_words(words, path=path, word_column=word_column, same=(word_column - tag_column) % layout.width == 0)
    if not scheme and shown == PLAIN and (wrong := misspelled(tag for file_tags in tags for tag in file_tags)):
        line = next(row.number for _, rows in blocks for row in rows if row.columns[tag_column] == wrong[0])
        raise misspelling(*wrong, location=f"{path} line {line}")
    sentences, scheme = [], scheme or shown
    for (document, rows), sentence, file_tags in zip(blocks, words, tags, strict=True):
        for row, word, tag in zip(rows, sentence, file_tags, strict=True):
            _check_row(word, tag, scheme=scheme, location=f"{path} line {row.number}")
        location = f"{path} sentence at line {rows[0].number}"
        normalized = tuple(normalized_tags(file_tags, scheme=scheme))
        sentences.append(Sentence(tuple(sentence), normalized, document, tuple(file_tags), location))
    return sentences


def _blocks(lines: Sequence[tuple[int, str]], *, path: Path, layout: _Layout) -> Iterator[tuple[int, list[_Row]]]:
    """Yield the rows of each sentence with the index of its document."""
    sentence, document, rows = 0, -1, list[_Row]()
    is_marked = any(_begins_document(line, layout=layout) for _, line in lines)
    for number, line in [*lines, (0, "")]:
        begins_document = _begins_document(line, layout=layout)
        if not line.strip() or begins_document:
            if rows:
                yield document if is_marked else sentence, rows
                sentence += 1
            rows = []
            document += begins_document
        elif not layout.is_comment(line, begins=not rows):
            columns = layout.split(line)
            if len(columns) != layout.width or layout.width < 2:
                raise UserError(
                    f"{path} line {number}: {counted(len(columns), 'column')}, expected {max(layout.width, 2)}: fix "
                    "the line"
                )
            rows.append(_Row(number, columns))


def _begins_document(line: str, *, layout: _Layout) -> bool:
    """Return whether a line marks the beginning of a document."""
    if line.startswith(_DOCUMENT):
        return True
    return _NEW_DOCUMENT.match(line) is not None and layout.is_comment(line, begins=True)


def _check_row(word: str, tag: str, *, scheme: str, location: str) -> None:
    if not word:
        raise UserError(f"{location}: the word is empty: fix the line")
    if not tag or _WHITE.search(tag):
        raise UserError(
            f"{location}: {tag!r} is not a tag: write one word and its tag per line; for a sentence per line use "
            "--config=configs/finetune_own.py:tags"
        )
    if scheme == CHUNKS and (not is_chunk_tag(tag) or tag.endswith("-O")):
        try:
            normalized_tags([tag], scheme=scheme)
        except UserError as error:
            raise UserError(f"{location}: {error}") from error


def _check_words(sentences: Sequence[Sequence[str]], *, path: Path, word_column: int, same: bool) -> None:
    """Check that the words are not the tags, and not the numbers of the words."""
    remedy = (
        "name the column of the words with --config.ner.word_column, and that of the tags with config.ner.tag_column"
    )
    first = ", ".join(sentences[0][:3])
    every = [word for words in sentences for word in words]
    are_tags = all(is_chunk_tag(word) for word in every) and any(word != "O" for word in every)
    if same or are_tags:
        raise UserError(f"{path}: the words (column {word_column}) are tags: {first}: {remedy}")
    if all(_INDEX.fullmatch(word) for word in every) and any(len(words) > 1 for words in sentences):
        starts = [int(words[0].partition("-")[0].partition(".")[0]) for words in sentences]
        ends = [0, *(start + len(words) for start, words in zip(starts, sentences, strict=True))]
        restarts, runs_on = set(starts) <= {0, 1}, starts[1:] == ends[1:-1]
        if restarts or runs_on:
            raise UserError(f"{path}: the words (column {word_column}) are their numbers: {first}: {remedy}")
