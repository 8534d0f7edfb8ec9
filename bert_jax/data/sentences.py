"""A paragraph to its sentences."""

from collections.abc import Callable

import sentencex

# sentencex takes time quadratic in the number of sentences of text that is not ASCII (32,000 Chinese characters: 80 ms,
# 4,000: 1.3 ms), so a longer paragraph goes through it in windows.
WINDOW = 4096  # characters

_native_segment: Callable[[str, str], list[str]] = getattr(sentencex, "segment")  # noqa: B009  it has no type stubs


def split_paragraph(text: str, *, language: str) -> list[str]:
    """Split a paragraph into its sentences, in order, without white space around them.

    `language` is an ISO 639 code; a language that sentencex has no rules for gets those of its nearest relative.
    """
    segments = _segment(language, text) if len(text) <= WINDOW else _segment_long(language, text)
    return [sentence for segment in segments if (sentence := segment.strip())]


def _segment(language: str, text: str) -> list[str]:
    try:
        return _native_segment(language, text)
    except UnicodeEncodeError:  # lone surrogates, which no UTF-8 text has
        return _native_segment(language, text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _segment_long(language: str, text: str) -> list[str]:
    segments: list[str] = []
    start = 0
    while start + WINDOW < len(text):
        # The last segment of a window may go on after it, so the next window starts with it. Where there is no other
        # (an open quotation mark keeps sentencex from splitting), the window is cut: longer than a row of a data set.
        window = text[start : start + WINDOW]
        whole = _segment(language, window)[:-1] or [window[: window.rfind(" ") + 1] or window]
        segments += whole
        start += sum(map(len, whole))
    return segments + _segment(language, text[start:])
