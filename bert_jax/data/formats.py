"""The four formats of text: detect the format and read its paragraphs."""

import html
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from bert_jax.data.lines import OVERLONG, clean, read_lines, replace_surrogates
from bert_jax.data.opening import ByteStream, without_compression
from bert_jax.data.prose import PARAGRAPH_END, find_layout, read_paragraphs
from bert_jax.data.source import ReadReport
from bert_jax.errors import UserError
from bert_jax.json_files import parse_object

Format = Literal["prose", "sentences", "jsonl", "wikiextractor"]
FORMATS: tuple[str, ...] = get_args(Format)
SAMPLE = 1 << 16  # bytes used for detection

_DOC_START = re.compile(r"\s*<doc [^>]*\b(?:id|title)=.*>\s*$")
_TITLE = re.compile(r'\btitle="(.*?)"(?: \w+=|>)')
_JSON_START = re.compile(r'\{\s*"')
# The end of a sentence: a mark, closing quotes or brackets, then white space or the end of the line. East Asian marks
# need no white space after them.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』”’）]*")


def detect_format(head: bytes, *, name: str) -> Format:
    """Return the format, detected from the first bytes of a text and its name."""
    lines = [line.strip() for line in _sample_lines(head)]
    full = [line for line in lines if line]
    if not full:
        return "prose"
    if _DOC_START.match(full[0]):
        return "wikiextractor"
    if _is_json_lines(full, name):
        return "jsonl"
    return "sentences" if _is_sentences(lines) else "prose"


def is_text(head: bytes) -> bool:
    """Return whether the first bytes look like UTF-8 text: at most a tenth of the characters are NUL or invalid.

    Western text in a single-byte encoding passes, because only a few percent of its letters are accented. Programs,
    images, UTF-16, and Cyrillic or Chinese text in older encodings do not.
    """
    text = head.decode(errors="replace")
    return 10 * (text.count("\0") + text.count("\ufffd")) <= len(text)


def _sample_lines(head: bytes) -> list[str]:
    text = clean(head.decode(errors="replace"), ReadReport())
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if len(head) >= SAMPLE and len(lines) > 1 else lines  # the last line is cut off by the sample


def _is_json_lines(full: list[str], name: str) -> bool:
    suffix = without_compression(name)[0].rpartition(".")[2].lower()
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


def read_events(stream: ByteStream, *, format: Format, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs (or sentences) of a text, and None after each document.

    Raises:
        UserError: if JSON lines are one array, or no line is an object with a `text`.
    """
    if format == "jsonl":
        return _read_jsonl(read_lines(stream, report=report, whole=True), name=stream.name, report=report)
    batches = read_lines(stream, report=report)
    if format == "wikiextractor":
        return _read_wikiextractor(batches)
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


def _read_jsonl(batches: Iterable[list[str]], *, name: str, report: ReadReport) -> Iterator[str | None]:
    number, num_valid, first_reason = 0, 0, ""
    for batch in batches:
        for line in batch:
            number += 1
            if line.isspace() or not line:
                continue
            if number == 1 and line.lstrip().startswith("["):
                raise UserError(
                    f"{name} is a JSON array: write one object per line, for example with: jq -c '.[]' {name}"
                )
            record = _parse(line)
            if isinstance(record, str):
                report.broken_lines += 1
                report.add_problem(f"{name}:{number}: {record}")
                first_reason = first_reason or f"line {number}: {record}"
                continue
            num_valid += 1
            yield from read_text(record["text"], report=report, title=record.get("title"))
    if first_reason and not num_valid:
        raise UserError(
            f"no line of {name} is a JSON object with a 'text' ({first_reason}): write one {{\"text\": ...}} per "
            "line, or set data.format to the file's format"
        )


def _parse(line: str) -> dict[str, Any] | str:
    """Return the object of a JSON line, or the reason why it is invalid."""
    if line is OVERLONG:
        return "the line is longer than 32 MiB"
    try:
        record = parse_object(line)
    except ValueError as error:
        return str(error)
    if not isinstance(record.get("text"), str):
        return f"no 'text' that is a string (fields: {', '.join(map(str, list(record)[:8])) or 'none'})"
    return record


def read_text(text: str, *, report: ReadReport, title: str | None = None) -> Iterator[str | None]:
    """Yield the paragraphs of a document given as a string, then None; a first line equal to the title is skipped."""
    text = clean(replace_surrogates(text, report), report)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if title and lines[0].strip() == title:
        del lines[0]
    yield from read_paragraphs([lines])
    yield None
