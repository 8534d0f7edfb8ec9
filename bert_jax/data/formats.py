"""The formats of text: detect the format of a file and read its paragraphs."""

import codecs
import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from bert_jax.data import arrow_files
from bert_jax.data.json_text import read_json, read_json_lines
from bert_jax.data.lines import clean, read_lines
from bert_jax.data.opening import ByteStream, without_compression
from bert_jax.data.prose import PARAGRAPH_END, find_layout, read_paragraphs
from bert_jax.data.row_text import is_tagged
from bert_jax.data.separators import read_blocks, read_separated, without_separator
from bert_jax.data.source import ReadReport, TextLayout
from bert_jax.data.tables import Dialect, find_dialect, read_table
from bert_jax.json_files import parse_prefix

Format = Literal["prose", "sentences", "jsonl", "wikiextractor", "json", "csv", "tsv", "parquet", "arrow"]
FORMATS: tuple[str, ...] = get_args(Format)
SAMPLE = 1 << 16  # bytes used for detection

_DOC_START = re.compile(r"\s*<doc [^>]*\b(?:id|title)=.*>\s*$")
_TITLE = re.compile(r'\btitle="(.*?)"(?: \w+=|>)')
_ARRAY_START = re.compile(r'\[\s*(?:\{\s*["}]|"[^"]*"\s*(?:,|\]|$)|\{$)')
_MEMBER_ARRAY = re.compile(r'\{\s*".*?":\s*\[\s*\{')
_WHITE = re.compile(r"\s*")
_JSON_START = re.compile(r'\{\s*"')
# The end of a sentence: a mark, closing quotes or brackets, then white space or the end of the line. East Asian marks
# need no white space after them.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』”’）]*")


def detect_format(head: bytes, *, name: str, documents: str = "") -> Format:
    """Return the format, detected from the first bytes of a text and its name; `documents` as in `TextLayout`."""
    if binary := binary_format(head):
        return binary
    lines = [line.strip() for line in sample_lines(without_separator(head, documents))]
    full = [line for line in lines if line]
    if not full:
        return "prose"
    if _DOC_START.match(full[0]):
        return "wikiextractor"
    if _is_json(full, name):
        return "json"
    if _is_json_lines(full, name):
        return "jsonl"
    dialect = _find_dialect(head, name)
    if dialect is not None:
        return "tsv" if dialect.delimiter == "\t" else "csv"
    return "sentences" if _is_sentences(lines) else "prose"


def binary_format(head: bytes) -> Literal["parquet", "arrow"] | None:
    """Return the format of a file that is not text, None for others."""
    if head.startswith(arrow_files.PARQUET):
        return "parquet"
    is_arrow = head.startswith(arrow_files.ARROW_FILE) or (head.startswith(arrow_files.ARROW_STREAM) and len(head) > 8)
    return "arrow" if is_arrow else None


def is_text(head: bytes) -> bool:
    """Return whether the first bytes look like UTF-8 text, perhaps with a little damage.

    At most a tenth of the characters are NUL or invalid; programs, images, UTF-16, and Cyrillic or Chinese text in
    older encodings have more. Western text in a single-byte encoding has few letters with accents, but none of them is
    valid: several and more than one in a thousand characters are invalid, and fewer are valid outside of ASCII. A
    character that the end cuts does not count.
    """
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head)
    invalid = text.count("\ufffd") - head.count("\ufffd".encode())
    if 10 * (text.count("\0") + invalid) > len(text):
        return False
    valid = sum(not char.isascii() for char in text) - invalid if invalid else 0
    return 1000 * invalid <= len(text) or invalid <= max(valid, 1)


def sample_lines(head: bytes) -> list[str]:
    """Return the whole lines among the first bytes of a text."""
    text = clean(head.decode(errors="replace"), ReadReport())
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if len(head) >= SAMPLE and len(lines) > 1 else lines  # the last line is cut off by the sample


def _suffix(name: str) -> str:
    return without_compression(name)[0].rpartition(".")[2].lower()


def _is_json(full: list[str], name: str) -> bool:
    """Return whether text is one JSON value: an array, or an object on several lines."""
    if _ARRAY_START.match(full[0]) or (full[0] == "[" and (len(full) == 1 or full[1][0] in '{["]')):
        return _suffix(name) == "json" or _is_array("\n".join(full))
    if len(full) == 1 and _suffix(name) == "json" and _MEMBER_ARRAY.match(full[0]):
        return True
    if full[0][0] != "{" or full[0][-1] == "}" or len(full) < 2:
        return False
    return (full[0] == "{" and full[1][0] in '"}') or (_suffix(name) == "json" and full[1][-1] in "[{,")


def _is_array(text: str) -> bool:
    """Return whether text after "[" is elements of JSON, of which the last may be cut off: prose may begin so, too."""
    at = 1
    while True:
        at = _end_of_white(text, at)
        if text[at : at + 1] in ("", "]"):
            return _ends_array(text, at)
        try:
            _, at = parse_prefix(text, at)
        except json.JSONDecodeError as error:
            return error.pos >= len(text) or error.msg.startswith("Unterminated string")
        except ValueError:  # whole, and the reader says what is wrong
            return True
        at = _end_of_white(text, at)
        if text[at : at + 1] != ",":
            return text[at : at + 1] in ("", "]") and _ends_array(text, at)
        at += 1


def _ends_array(text: str, at: int) -> bool:
    after = text[_end_of_white(text, at + 1) :][:1]
    return after in ("", "[", "{")


def _end_of_white(text: str, at: int) -> int:
    return at + len(_WHITE.match(text, at)[0])  # pyright: ignore[reportOptionalSubscript]: it matches everywhere


def _find_dialect(head: bytes, name: str) -> Dialect | None:
    suffix, lines = _suffix(name), sample_lines(head)
    while lines and not lines[-1].strip():
        lines.pop()
    if len(head) >= SAMPLE and len(lines) > 3:
        lines.pop()  # a row may have several lines, so this row may be cut
    named = {"csv": ",\t;|", "tsv": "\t", "tab": "\t"}
    if suffix in named:
        return find_dialect(lines, name_says_table=True, delimiters=named[suffix])
    if suffix not in ("", "txt", "dat", name) or is_tagged(lines):
        return None
    return find_dialect(lines, name_says_table=False, delimiters=",\t;|")


def _is_json_lines(full: list[str], name: str) -> bool:
    suffix = _suffix(name)
    if suffix in ("jsonl", "ndjson") or (suffix == "json" and full[0][0] in "[{"):
        return True
    objects = sum(line[0] == "{" and line[-1] == "}" for line in full)
    return 2 * objects >= len(full) or (len(full) == 1 and _JSON_START.match(full[0]) is not None)


def _is_sentences(lines: list[str]) -> bool:
    """Return whether text is in the original's format: one sentence per line, blank lines between documents.

    Such text is not wrapped, several lines separate most blank lines, and few lines contain two sentences: lines with
    two sentence ends have 15 % of the characters in google-research/bert's sample and 0.4 % in CLUECorpusSmall, but 57
    to 98 % in 44 novels with one paragraph per line.
    """
    if find_layout(lines).width:
        return False
    full = [line for line in lines if line]
    pairs = [(line, after) for line, after in itertools.pairwise(lines) if line and after]
    broken = sum(after[0].islower() and not line.endswith(PARAGRAPH_END) for line, after in pairs)
    if broken > 0.3 * len(pairs) and any(
        line[0].isupper() for line in full
    ):  # wrapped, though too few lines for find_layout
        return False
    blocks = sum(bool(line) and not before for before, line in zip(["", *lines], lines, strict=False))
    if len(full) < 2 or (blocks > 1 and len(full) < 1.5 * blocks):
        return False
    several = sum(len(line) for line in full if len(_SENTENCE_END.findall(line)) > 1)
    return several < 0.35 * sum(map(len, full))


def read_events(
    stream: ByteStream, *, format: Format, report: ReadReport, layout: TextLayout | None = None
) -> Iterator[str | None]:
    """Yield the paragraphs (or sentences) of a text, and None after each document.

    Raises:
        NoTextError: if there is no text at the layout's key or column.
        UserError: if the file is damaged.
    """
    layout = TextLayout() if layout is None else layout
    if format in ("parquet", "arrow"):
        return arrow_files.read_arrow(stream, column=layout.text_column, report=report)
    if format in ("csv", "tsv"):
        delimiters = ",\t;|" if format == "csv" else "\t"
        head = stream.peek(SAMPLE)
        dialect = _find_dialect(head, stream.name) or find_dialect(
            sample_lines(head), name_says_table=True, delimiters=delimiters
        )
        return read_table(stream, dialect=dialect or Dialect(), column=layout.text_column, report=report)
    if format == "json":
        return read_json(stream, key=layout.text_key, report=report)
    if format == "jsonl":
        batches = read_lines(stream, report=report, whole=True)
        return read_json_lines(batches, name=stream.name, key=layout.text_key, report=report)
    batches = read_lines(stream, report=report)
    if format == "wikiextractor":
        return _read_wikiextractor(batches)
    if layout.documents in ("lines", "blank_lines"):
        return read_blocks(batches, lines=layout.documents == "lines", sentences=format == "sentences")
    if layout.documents:
        is_a_line = format == "sentences"
        return read_separated(batches, separator=layout.documents, sentences=is_a_line, report=report)
    return _read_sentences(batches) if format == "sentences" else _read_prose(batches)


def _read_prose(batches: Iterable[list[str]]) -> Iterator[str | None]:
    yield from read_paragraphs(batches)
    yield None


def _read_sentences(batches: Iterable[list[str]]) -> Iterator[str | None]:
    for batch in batches:
        for line in batch:
            yield line.strip() or None
    yield None


def _read_wikiextractor(batches: Iterable[list[str]]) -> Iterator[str | None]:
    """Read `<doc id= url= title=>` … `</doc>`; skip the title, which is repeated as the first line."""
    title = None
    for batch in batches:
        for line in batch:
            text = line.strip()
            if text.startswith("<") and (text == "</doc>" or _DOC_START.match(text)):
                yield None
                match = _TITLE.search(text)
                title = html.unescape(match[1]) if match else None
            elif text:
                text = html.unescape(text) if "&" in text else text
                if text != title:
                    yield text
                title = None
    yield None
