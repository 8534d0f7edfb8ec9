"""Files that are not plain text, recognized by their first bytes and their names."""

import re

_HTML_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html[\s>])", re.I | re.S)
_XML_START = re.compile(r"\s*<\?xml\s")
_TAG = re.compile(
    r"</?(?:a|b|body|br|button|div|em|font|form|h[1-6]|head|hr|i|iframe|img|input|label|li|link|meta|nav|ol|option|p|pre|script"
    r"|section|select|span|strong|style|table|tbody|td|th|title|tr|ul)(?:\s[^<>]*)?/?>",
    re.I,
)
_MIN_TAGS = 10
_TAG_FRACTION = 0.15  # of the characters of a page that lacks a head
_FEW_TAGS = 0.02  # of the characters of a file named .html

# By first bytes: what a file is, and what to do with it.
_MAGIC = (
    (b"%PDF-", "a PDF: extract its text, for example with pdftotext"),
    (b"\x89PNG\r\n", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"BM", "an image"),
    (b"II*\0", "an image"),
    (b"MM\0*", "an image"),
    (b"RIFF", "an image or sound"),
    (b"ID3", "sound"),
    (b"OggS", "sound"),
    (b"fLaC", "sound"),
    (b"\0\0\0\x18ftyp", "a video"),
    (b"\0\0\0\x20ftyp", "a video"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"SQLite format 3\0", "a database: write its texts to JSON lines or CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document: save it as text"),
    (b"Rar!\x1a\x07", "a rar archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"{\\rtf", "an RTF document: save it as text"),
)
_TEXT_MAGIC = (b"%PDF-", b"{\\rtf")
_OFFICE = ("docx", "xlsx", "pptx", "odt", "ods", "odp", "epub", "docm", "xlsm")
# Bytes that no encoding of text has, except UTF-16; of random bytes they are 11 %.
_CONTROLS = [bytes([code]) for code in range(32) if code not in b"\t\n\v\f\r\x1a\x1b"]
_FEW_CONTROLS = 0.01
_PROGRAM_ZIPS = ("jar", "npz", "pt", "pth", "whl", "apk")


NOT_TEXT = "not text"


def why_not_text(head: bytes, *, name: str) -> str:
    """Return what a file is and what to do with it, "" if it may be plain text."""
    for magic, meaning in _MAGIC:
        # A text may start with "RIFF" or "BM", but it has no NUL.
        if head.startswith(magic) and (magic in _TEXT_MAGIC or not magic.isalnum() or b"\0" in head[:512]):
            return meaning
    suffix = name.rpartition(".")[2].lower()
    if head[:2] == b"PK":
        if suffix in _OFFICE:
            return "an Office document or e-book: save it as text"
        return "a program's archive" if suffix in _PROGRAM_ZIPS else ""
    return ""


def why_not_utf8(head: bytes) -> str:
    """Return what a file that does not decode as UTF-8 is, and what to do with it."""
    controls = sum(head.count(code) for code in _CONTROLS) / max(len(head), 1)
    if controls > _FEW_CONTROLS and not _is_utf16(head):
        return NOT_TEXT
    return "not UTF-8 text (convert it, for example with: iconv -f ENCODING -t UTF-8)"


def _is_utf16(head: bytes) -> bool:
    """Return whether bytes with NULs are UTF-16: a mark at the start, or Western letters, whose NULs alternate."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    even, odd = head[::2].count(0), head[1::2].count(0)
    if not marked and (5 * (even + odd) < len(head) or 20 * min(even, odd) > even + odd):
        return False
    big = head.startswith(b"\xfe\xff") or (not marked and even > odd)
    text = head[: len(head) // 2 * 2].decode("utf-16-be" if big else "utf-16-le", errors="replace")
    strange = text.count("\ufffd") + sum(text.count(chr(code[0])) for code in _CONTROLS)
    return strange <= _FEW_CONTROLS * len(text) + 1  # 1: the sample may cut a character


def markup(head: bytes, *, name: str) -> str:
    """Return what to do with HTML or XML, "" if a text is neither."""
    text = head.decode(errors="replace").lstrip("\ufeff")
    tags = [len(match.group()) for match in _TAG.finditer(text)]
    share = sum(tags) / max(len(text), 1)
    named = name.lower().endswith((".html", ".htm", ".xhtml")) and share > _FEW_TAGS
    if _HTML_START.match(text) or named or (len(tags) >= _MIN_TAGS and share > _TAG_FRACTION):
        return "HTML, not plain text: extract its text first, for example with trafilatura"
    is_xml = name.lower().endswith((".xml", ".svg", ".rss", ".kml")) and text.lstrip().startswith("<")
    if is_xml or _XML_START.match(text):
        return "XML, not plain text: extract its text first (a Wikipedia dump with wikiextractor)"
    return ""
