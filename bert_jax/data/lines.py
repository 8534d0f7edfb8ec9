"""Split bytes into lines of text, in bounded memory for any input."""

import re
from collections.abc import Iterator

from bert_jax.data.opening import ByteStream
from bert_jax.data.source import ReadReport

BLOCK = 1 << 20  # bytes per read
MAX_LINE = 1 << 18  # bytes; a longer line is split: 256 KiB is about 40,000 words
MAX_WHOLE_LINE = 1 << 25  # bytes; a JSON line cannot be split; this is enough for a book
_BATCH = 1 << 18  # bytes decoded and split at a time

# Vertical tab, form feed, next line, line and paragraph separator: line breaks to some programs, but not here (a JSON
# string may contain the last two).
_BREAKS = "\x0b\x0c\x85\u2028\u2029"
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARK = "\ufeff"
OVERLONG = "\0"  # marks a skipped line; no other line contains a NUL


def read_lines(stream: ByteStream, *, report: ReadReport, whole: bool = False) -> Iterator[list[str]]:
    r"""Yield the lines of UTF-8 text, without line ends ("\n", "\r\n" or "\r"), in batches of about 256 KiB.

    Invalid UTF-8 becomes U+FFFD, NUL and byte order marks are removed, other breaks become spaces; `report` counts
    them. A line longer than `MAX_LINE` bytes is split at white space, or at that size if it has none. With `whole`,
    lines are not split, and a line longer than `MAX_WHOLE_LINE` is replaced by `OVERLONG`.
    """
    limit = MAX_WHOLE_LINE if whole else MAX_LINE
    data, in_long_line = b"", False
    for block in _normalized(stream, report):
        data = data + block if data else block
        start = 0
        while len(data) - start > _BATCH:
            end = data.rfind(b"\n", start, start + _BATCH + 1)
            if end < 0:
                end = data.find(b"\n", start + _BATCH + 1, start + limit + 1)
            if end >= 0:
                yield _lines(data[start:end], report, leave_out_first=whole and in_long_line)
                start, in_long_line = end + 1, False
                continue
            if len(data) - start <= limit:
                break  # the line's end is still to be read
            report.long_lines_cut += not in_long_line and not whole
            in_long_line = True
            end = _cut(data, start, start + limit)
            if not whole:
                yield _lines(data[start:end], report)
            start = end
        data = data[start:]
    if data:
        yield _lines(data.removesuffix(b"\n"), report, leave_out_first=whole and in_long_line)


def _lines(data: bytes, report: ReadReport, *, leave_out_first: bool = False) -> list[str]:
    lines = clean(decode(data, report), report).split("\n")
    if leave_out_first:
        lines[0] = OVERLONG
    return lines


def clean(text: str, report: ReadReport) -> str:
    """Remove NUL and byte order marks, replace unusual line breaks by spaces, and count the NULs."""
    if "\0" in text:
        report.nul_characters += text.count("\0")
        text = text.replace("\0", "")
    if _BYTE_ORDER_MARK in text:
        text = text.replace(_BYTE_ORDER_MARK, "")
    for mark in _BREAKS:
        if mark in text:
            text = text.replace(mark, " ")
    return text


def replace_surrogates(text: str, report: ReadReport) -> str:
    r"""Replace lone surrogates, which JSON can encode ("\ud800") and UTF-8 cannot, by U+FFFD, and count them."""
    if text.isascii():
        return text
    text, count = _SURROGATES.subn("\ufffd", text)
    report.invalid_utf8 += count
    return text


def _normalized(stream: ByteStream, report: ReadReport) -> Iterator[bytes]:
    pending = b""  # a "\r" that may be half of "\r\n"
    while block := stream.read(BLOCK):
        report.bytes += len(block)
        block, pending = pending + block, b""
        if block.endswith(b"\r"):
            block, pending = block[:-1], b"\r"
        yield block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block
    if pending:
        yield b"\n"


def decode(data: bytes, report: ReadReport) -> str:
    """Decode UTF-8; replace invalid bytes by U+FFFD, and count them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        report.invalid_utf8 += text.count("\ufffd") - data.count("\ufffd".encode())
        return text


def _cut(data: bytes, start: int, end: int) -> int:
    """Return where to split a line that is longer than `end`: after white space, else between two characters."""
    white = max(data.rfind(b" ", start, end), data.rfind(b"\t", start, end))
    if white >= 0:
        return white + 1
    for character in range(end, max(end - 4, start), -1):
        if data[character] & 0xC0 != 0x80:  # not a UTF-8 continuation byte
            return character
    return end
