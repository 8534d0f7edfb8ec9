"""Documents within a file of plain text: a line, what is between blank lines, or between occurrences of a separator."""

from collections.abc import Iterable, Iterator, Sequence

from bert_jax.data.prose import read_paragraphs
from bert_jax.data.source import ReadReport

WAYS = ("lines", "blank_lines")


def read_blocks(batches: Iterable[Sequence[str]], *, lines: bool, sentences: bool) -> Iterator[str | None]:
    """Yield the paragraphs (or `sentences`) of each block of lines, or of each line with `lines`, and None after it."""
    block: list[str] = []
    for batch in batches:
        for line in batch:
            text = line.strip()
            if lines and text:
                yield text
                yield None
            elif text:
                block.append(line)
            elif block:
                yield from _read_block(block, sentences=sentences)
                block = []
            if len(block) >= _MAX_LINES:  # bounds the memory: a longer block comes in several pieces
                yield from _paragraphs(block, sentences=sentences)
                block = []
    if block:
        yield from _read_block(block, sentences=sentences)
    yield None


_MAX_LINES = 10_000


def read_separated(
    batches: Iterable[Sequence[str]], *, separator: str, sentences: bool, report: ReadReport
) -> Iterator[str | None]:
    """Yield the paragraphs (or `sentences`) between occurrences of a separator, and None after each document."""
    part: list[str] = []
    for batch in batches:
        for line in batch:
            if separator not in line:
                part.append(line)
            else:
                first, *others = line.split(separator)
                report.separators += len(others)
                for text in others:
                    yield from _read_block([*part, first], sentences=sentences)
                    part, first = [], text
                part = [first]
            if len(part) >= _MAX_LINES:
                yield from _paragraphs(part, sentences=sentences)
                part = []
    yield from _read_block(part, sentences=sentences)


def _read_block(lines: Sequence[str], *, sentences: bool) -> Iterator[str | None]:
    yield from _paragraphs(lines, sentences=sentences)
    yield None


def _paragraphs(lines: Sequence[str], *, sentences: bool) -> Iterator[str]:
    if sentences:
        yield from (text for line in lines if (text := line.strip()))
    else:
        yield from read_paragraphs([lines])


def without_separator(head: bytes, documents: str) -> bytes:
    """Return the first bytes of a text with blank lines in place of separators, which would disturb the detection."""
    if not documents or documents in WAYS:
        return head
    return head.replace(documents.encode("utf-8", "replace"), b"\n\n")
