"""The four formats of text: find out which one, read it as paragraphs."""

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
from bert_jax.files import parse_object

Format = Literal["prose", "sentences", "jsonl", "wikiextractor"]
FORMATS: tuple[str, ...] = get_args(Format)
SAMPLE = 1 << 16  # bytes looked at

_DOC_START = re.compile(r"\s*<doc [^>]*\b(?:id|title)=.*>\s*$")
_TITLE = re.compile(r'\btitle="(.*?)"(?: \w+=|>)')
_JSON_START = re.compile(r'\{\s*"')
# The end of a sentence within or at the end of a line: a mark, closing quotes or brackets, then white space or the end;
# East Asian marks need no white space after them.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』”’）]*")


def find_format(head: bytes, *, name: str) -> Format:
    """Find out the format from the first bytes of a text and its name."""
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
    """Say whether the first bytes look like UTF-8 text: at most a tenth of the characters NUL or invalid.

    Western text in a one-byte encoding has a few accented letters in a hundred, and passes; a program, an image, UTF-16
    or Cyrillic or Chinese in an older encoding does not.
    """
    text = head.decode(errors="replace")
    return 10 * (text.count("\0") + text.count("\ufffd")) <= len(text)


def _sample_lines(head: bytes) -> list[str]:
    text = clean(head.decode(errors="replace"), ReadReport())
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if len(head) >= SAMPLE and len(lines) > 1 else lines  # the last line goes on after the sample


def _is_json_lines(full: list[str], name: str) -> bool:
    suffix = without_compression(name)[0].rpartition(".")[2].lower()
    if suffix in ("jsonl", "ndjson") or (suffix == "json" and full[0][0] in "[{"):
        return True
    objects = sum(line[0] == "{" and line[-1] == "}" for line in full)
    return 2 * objects >= len(full) or (len(full) == 1 and _JSON_START.match(full[0]) is not None)


def _is_sentences(lines: list[str]) -> bool:
    """Tell the original's format (a sentence a line, blank lines between documents) from prose.

    Not wrapped, most blank lines apart by several lines, and hardly any line with two sentences: of the characters,
    15 % (google-research/bert's sample) and 0.4 % (CLUECorpusSmall) stand in lines with two sentence ends, against 57
    to 98 % in 44 novels with a paragraph a line.
    """
    if find_layout(lines).width:
        return False
    full = [line for line in lines if line]
    pairs = [(line, after) for line, after in itertools.pairwise(lines) if line and after]
    torn = sum(after[0].islower() and not line.endswith(PARAGRAPH_END) for line, after in pairs)
    if torn > 0.3 * len(pairs) and any(line[0].isupper() for line in full):  # wrapped, if only a few lines
        return False
    blocks = sum(bool(line) and not before for before, line in zip(["", *lines], lines, strict=False))
    if len(full) < 2 or (blocks > 1 and len(full) < 1.5 * blocks):
        return False
    several = sum(len(line) for line in full if len(_SENTENCE_END.findall(line)) > 1)
    return several < 0.35 * sum(map(len, full))


def read_events(stream: ByteStream, *, format: Format, report: ReadReport) -> Iterator[str | None]:
    """Yield the paragraphs (or sentences) of a text, and None after each document.

    Raises:
        UserError: JSON lines are one array, or no line is an object with a `text`.
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
    """Read `<doc id= url= title=>` … `</doc>`; the title, which stands again as the first line, is no sentence."""
    title = None
    for batch in batches:
        for line in batch:
            text = line.strip()
            if text.startswith("<") and (text == "</doc>" or _DOC_START.match(text)):
                yield None
                found = _TITLE.search(text)
                title = html.unescape(found[1]) if found else None
            elif text:
                text = html.unescape(text) if "&" in text else text
                if text != title:
                    yield text
                title = None
    yield None


def _read_jsonl(batches: Iterable[list[str]], *, name: str, report: ReadReport) -> Iterator[str | None]:
    number, good, first_reason = 0, 0, ""
    for batch in batches:
        for line in batch:
            number += 1
            if line.isspace() or not line:
                continue
            if number == 1 and line.lstrip().startswith("["):
                raise UserError(f"{name} is a JSON array: write its objects one a line, as with: jq -c '.[]' {name}")
            record = _parse(line)
            if isinstance(record, str):
                report.broken_lines += 1
                report.add_problem(f"{name}:{number}: {record}")
                first_reason = first_reason or f"line {number}: {record}"
                continue
            good += 1
            yield from read_text(record["text"], report=report, title=record.get("title"))
    if first_reason and not good:
        raise UserError(
            f"no line of {name} is a JSON object with a 'text' ({first_reason}): write one {{\"text\": ...}} a line, "
            "or name the file's format"
        )


def _parse(line: str) -> dict[str, Any] | str:
    """Parse a JSON line, or say why it is broken."""
    if line is OVERLONG:
        return "the line is over 32 MiB long"
    try:
        record = parse_object(line)
    except ValueError as error:
        return str(error)
    if not isinstance(record.get("text"), str):
        return f"no 'text' that is a string (there are: {', '.join(map(str, list(record)[:8])) or 'none'})"
    return record


def read_text(text: str, *, report: ReadReport, title: str | None = None) -> Iterator[str | None]:
    """Yield the paragraphs of a document at hand as a string, then None; a first line that is the title goes."""
    text = clean(replace_surrogates(text, report), report)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if title and lines[0].strip() == title:
        del lines[0]
    yield from read_paragraphs([lines])
    yield None
