"""Bytes to lines of text, in bounded memory whatever the bytes are."""

import re
from collections.abc import Iterator

from bert_jax.data.opening import ByteStream
from bert_jax.data.source import ReadReport

BLOCK = 1 << 20  # bytes a read
MAX_LINE = 1 << 18  # bytes; a longer line is cut: 256 KiB is some 40,000 words
MAX_WHOLE_LINE = 1 << 25  # bytes; a JSON line cannot be cut, and one holds at most a book
_BATCH = 1 << 18  # bytes decoded and split in one go

# Vertical tab, form feed, next line, line and paragraph separator: breaks to some programs, but not the end of a line
# here (a JSON string may hold the last two as they are).
_BREAKS = "\x0b\x0c\x85\u2028\u2029"
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARK = "\ufeff"
OVERLONG = "\0"  # stands for a line left out; no other line holds a NUL


def read_lines(stream: ByteStream, *, report: ReadReport, whole: bool = False) -> Iterator[list[str]]:
    r"""Yield the lines of UTF-8 text in batches of about 256 KiB, ended by "\n", "\r\n" or "\r", without the end.

    Invalid UTF-8 becomes U+FFFD, NUL and byte order marks go, other odd breaks become spaces; the report counts. A line
    over `MAX_LINE` bytes is cut at white space, or at that size where there is none; with `whole`, lines up to
    `MAX_WHOLE_LINE` stay in one piece and `OVERLONG` stands in the place of a longer one.
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
    """Take out what no text needs (NUL, byte order marks, odd breaks), counting the NULs."""
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
    r"""Replace lone surrogates, which JSON can write ("\ud800") and UTF-8 cannot, by U+FFFD, counting them."""
    if text.isascii():
        return text
    text, count = _SURROGATES.subn("\ufffd", text)
    report.invalid_utf8 += count
    return text


def _normalized(stream: ByteStream, report: ReadReport) -> Iterator[bytes]:
    held = b""  # a "\r" that may be half of "\r\n"
    while block := stream.read(BLOCK):
        report.bytes += len(block)
        block, held = held + block, b""
        if block.endswith(b"\r"):
            block, held = block[:-1], b"\r"
        yield block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block
    if held:
        yield b"\n"


def decode(data: bytes, report: ReadReport) -> str:
    """Decode UTF-8, replacing what is not UTF-8 by U+FFFD and counting it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        report.invalid_utf8 += text.count("\ufffd") - data.count("\ufffd".encode())
        return text


def _cut(data: bytes, start: int, end: int) -> int:
    """Return where to cut a line that goes on after `end`: behind white space, else between two characters."""
    white = max(data.rfind(b" ", start, end), data.rfind(b"\t", start, end))
    if white >= 0:
        return white + 1
    for character in range(end, max(end - 4, start), -1):
        if data[character] & 0xC0 != 0x80:  # not a UTF-8 continuation byte
            return character
    return end
