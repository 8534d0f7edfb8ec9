"""Join lines of prose into paragraphs: each line may be a paragraph, or paragraphs may be wrapped."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bert_jax.data.lines import clean, replace_surrogates
from bert_jax.data.source import ReadReport

MAX_PARAGRAPH = 1 << 16  # characters; a longer paragraph is split
_WINDOW = 1000  # lines per detected layout: about 70 KB of wrapped text
_SAMPLE = 400  # lines of a window used to detect its layout
_ENOUGH = 20  # lines; with fewer, the layout of the previous window applies
PARAGRAPH_END = tuple(".!?:;…。！？：；\"'”’»)]」』）")  # last characters of a paragraph
_EAST_ASIAN = "\u2e80"  # from here on mostly scripts without spaces between words


@dataclass(frozen=True)
class Layout:
    """How lines form paragraphs."""

    width: int  # the width of wrapped lines, 0 if each line is a paragraph
    blank_separated: bool  # blank lines separate paragraphs; otherwise a short line ends one


_LINES = Layout(width=0, blank_separated=True)


def find_layout(lines: Sequence[str], *, before: Layout = _LINES) -> Layout:
    """Detect whether and how the lines of a file, or of a part of it, are wrapped.

    Wrapped lines have nearly the same width (at most 200), end in the middle of a sentence, and often begin with a
    lower-case letter where the script has one. Of 100 novels 56 are wrapped: of their lines followed by a line, 63 to
    99 % end in mid-sentence and 55 to 97 % continue in lower case; the 95th percentile of the widths is 57 to 101, and
    at least 382 in the other novels.
    """
    sample = [line.rstrip() for line in lines[:_SAMPLE]]
    widths = sorted(len(line) for line in sample if line)
    if len(widths) < _ENOUGH and before is not _LINES:
        return before
    pairs = [(line, after) for line, after in itertools.pairwise(sample) if line and after]
    open_ends = [line for line, after in pairs if not line.endswith(PARAGRAPH_END)]
    if len(pairs) < 2 or len(open_ends) < len(pairs) * 0.4:
        return _LINES
    width = widths[int(len(widths) * 0.95)]
    if not 20 <= width <= 200:
        return _LINES
    full = sum(len(line) >= width * 0.75 for line in open_ends)
    lower, cased = 0, 0
    for _, after in pairs:
        first = after.lstrip()[0]
        lower += first.islower()
        cased += first.islower() or first.isupper()
    if full < len(open_ends) * (0.6 if cased else 0.8) or lower < cased * 0.25:
        return _LINES
    blocks = len(widths) - len(pairs)  # each block of lines has one line more than pairs
    return Layout(width=width, blank_separated=len(widths) < blocks * 50)  # no author's mean paragraph has 50 lines


def read_paragraphs(batches: Iterable[Sequence[str]]) -> Iterator[str]:
    """Join wrapped lines into paragraphs; a blank line always ends one.

    The layout is detected again every 1000 lines, because a file may be a concatenation of files. Lines are joined
    with a space, but without one after a hyphen (kept), after a soft hyphen (removed), and between East Asian
    characters.
    """
    layout = _LINES
    parts: list[str] = []
    last, size = "", 0  # the previous line with its indent; characters in `parts`
    for window in _windows(batches):
        layout = find_layout(window, before=layout)
        widest = layout.width * 1.5
        for line in window:
            text = line.strip()
            if not text:
                if parts:
                    yield " ".join(parts)
                    parts = []
                continue
            # The first condition is the most frequent case of _continues, which takes half the time by itself.
            if (
                parts
                and size < MAX_PARAGRAPH
                and ((len(last) <= widest and text[0].islower()) or _continues(last, line, text, layout))
            ):
                end = last[-1]
                if end == "-" or end > "~":
                    _join_tightly(parts, text)
                else:
                    parts.append(text)
            else:
                if parts:
                    yield " ".join(parts)
                parts, size = [text], 0
            last = line.rstrip()
            size += len(text)
    if parts:
        yield " ".join(parts)


def read_document(text: str, *, report: ReadReport, title: str | None = None) -> Iterator[str | None]:
    """Yield the paragraphs of a document given as a string, then None; a first line equal to the title is skipped."""
    text = clean(replace_surrogates(text, report), report)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if title and lines[0].strip() == title:
        del lines[0]
    yield from read_paragraphs([lines])
    yield None


def _windows(batches: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    for batch in batches:
        for start in range(0, len(batch), _WINDOW):
            yield batch[start : start + _WINDOW]


def _continues(last: str, line: str, text: str, layout: Layout) -> bool:
    """Return whether a line continues the paragraph of the previous line."""
    width = len(last)
    wrapped = width <= layout.width * 1.5
    if text[0].islower():
        return wrapped or not last.endswith(PARAGRAPH_END)
    if not wrapped:
        return False
    if line[0] in " \t" and _indent(line) >= _indent(last) + 2:
        return False
    if layout.blank_separated or (width > layout.width * 0.6 and not last.endswith(PARAGRAPH_END)):
        return True
    first_word = 1 if text[0] >= _EAST_ASIAN else text.find(" ")
    return width + 1 + (first_word if first_word > 0 else len(text)) > layout.width


def _indent(line: str) -> int:
    line = line.expandtabs()
    return len(line) - len(line.lstrip())


def _join_tightly(parts: list[str], text: str) -> None:
    end = parts[-1][-1]
    if end == "\xad":
        parts[-1] = parts[-1][:-1] + text
    elif (end == "-" and parts[-1][-2:-1].strip()) or (end >= _EAST_ASIAN and text[0] >= _EAST_ASIAN):
        parts[-1] += text
    else:
        parts.append(text)
