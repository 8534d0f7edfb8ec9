"""Turn text into words and words into pieces, by the rules of google-research/bert's tokenization.py.

Everything here is a pure function of the text. The rules, in their order:

1. Drop NUL, U+FFFD and every control or format character (Cc, Cf) but tab, line feed and carriage return.
2. Set each character of the CJK blocks apart; Hangul, Hiragana and Katakana are ordinary letters.
3. Split at white space: Zs, tab, line feed, carriage return, U+2028 and U+2029.
4. Lower-casing vocabularies only: lower, decompose (NFD), drop non-spacing marks (Mn).
5. Make each punctuation character a word: category P and every ASCII character that is no letter or digit.
6. Match greedily, longest piece first; a word with a part that matches nothing is unknown as a whole.

Steps 1 to 5 of a word do not look past the white space around it: tokenization.py memoises by word because of this.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

# Characters that str.split() takes for white space and the original drops (Cc). All other characters that split() knows
# are white space to the original too, so split() is exact once these are gone.
CONTROL_WHITE_SPACE = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"

_CJK_BLOCKS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# A text may be cut behind these with no word changed: both sides are words of their own.
_SAFE_CUT = re.compile("[ \t\n\r\u3400-\u4dbf\u4e00-\u9fff]")


class _CodePointTable(dict[int, int | str | None]):
    """Serve str.translate, classifying each code point when it is first met: a full table would cost 0.5 s at start."""

    def __init__(self, classify: Callable[[str], str | None]):
        super().__init__()
        self._classify = classify

    def __missing__(self, code_point: int) -> int | str | None:
        replacement = self._classify(chr(code_point))
        value = code_point if replacement == chr(code_point) else replacement
        self[code_point] = value
        return value


def is_cjk(char: str) -> bool:
    """Return whether a character is always a word of its own because it is of a CJK block."""
    code_point = ord(char)
    return any(first <= code_point <= last for first, last in _CJK_BLOCKS)


def is_punctuation(char: str) -> bool:
    """Return whether a character is always a word of its own because it is punctuation."""
    return (char.isascii() and char.isprintable() and not char.isalnum() and char != " ") or (
        unicodedata.category(char)[0] == "P"
    )


def _clean(char: str) -> str | None:
    if char in "\t\n\r":
        return " "
    if char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf"):
        return None
    if char.isspace():
        return " "
    return f" {char} " if is_cjk(char) else char


def _set_apart(char: str) -> str:
    return f" {char} " if is_punctuation(char) else char


def _strip_marks_and_set_apart(char: str) -> str | None:
    return None if unicodedata.category(char) == "Mn" else _set_apart(char)


_CLEANED = _CodePointTable(_clean)
_CASED = _CodePointTable(_set_apart)
_UNCASED = _CodePointTable(_strip_marks_and_set_apart)


def segments(text: str, *, max_chars: int = 1 << 20) -> Iterator[str]:
    """Cut a long text where no word changes, so that memory follows `max_chars` and not the text; short texts whole."""
    start = 0
    while len(text) - start > max_chars:
        cut = _SAFE_CUT.search(text, start + max_chars)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    if start < len(text) or not text:
        yield text[start:]


def basic_words(text: str, *, do_lower_case: bool) -> list[str]:
    """Split text into words, normalized: what the original's BasicTokenizer returns.

    Lower-casing and NFD run on the whole text at once; white space is neither cased nor skipped by the final-sigma rule
    nor reordered by NFD, so the outcome is that of every word alone.
    """
    if text.isascii() and text.isalnum():  # most words of English: nothing to drop, to part or to decompose
        return [text.lower() if do_lower_case else text]
    cleaned = text.translate(_CLEANED)
    if do_lower_case:
        return unicodedata.normalize("NFD", cleaned.lower()).translate(_UNCASED).split()
    return cleaned.translate(_CASED).split()


@dataclasses.dataclass(frozen=True)
class AlignedWord:
    """Hold a normalized word and, for each of its characters, the half-open span of the text it comes from."""

    text: str
    starts: list[int]
    ends: list[int]


def aligned_words(text: str, *, do_lower_case: bool) -> list[AlignedWord]:
    """Split text into the words of `basic_words`, each character with its span in `text`.

    A dropped mark belongs to the character before it in its word, so that a span never cuts an accent off its letter.
    Where one character of the text becomes several (Hangul under NFD), all of them have its span.
    """
    words: list[AlignedWord] = []
    chars: list[str] = []
    sources: list[int] = []

    def close_run():
        if chars:
            words.extend(_align_run("".join(chars), sources, do_lower_case=do_lower_case))
            chars.clear()
            sources.clear()

    for index, char in enumerate(text):
        cleaned = char.translate(_CLEANED)
        if cleaned == char:
            chars.append(char)
            sources.append(index)
        elif cleaned:  # white space or CJK
            close_run()
            if cleaned != " ":
                words.extend(_align_run(char, [index], do_lower_case=do_lower_case))
    close_run()
    return words


def _align_run(run: str, sources: list[int], *, do_lower_case: bool) -> list[AlignedWord]:
    """Normalize a run free of white space and control characters, and split it at punctuation."""
    table = _UNCASED if do_lower_case else _CASED
    chars, chars_sources = _lower_and_decompose(run, sources) if do_lower_case else (run, sources)
    words: list[tuple[list[str], list[int], list[int]]] = []
    goes_on = False
    for char, source in zip(chars, chars_sources, strict=True):
        placed = char.translate(table)
        if not placed:
            if words:
                ends = words[-1][2]
                ends[-1] = max(ends[-1], source + 1)
            continue
        if not goes_on or placed != char:
            words.append(([], [], []))
        letters, starts, ends = words[-1]
        letters.append(char)
        starts.append(source)
        ends.append(source + 1)
        goes_on = placed == char
    return [AlignedWord("".join(letters), starts, ends) for letters, starts, ends in words]


def _lower_and_decompose(run: str, sources: list[int]) -> tuple[str, list[int]]:
    # Only the final sigma depends on its neighbors, and both sigmas are one character: lengths can be taken singly.
    lowered = run.lower()
    lowered_sources = [s for char, s in zip(run, sources, strict=True) for _ in char.lower()]
    pairs = [
        (part, s)
        for char, s in zip(lowered, lowered_sources, strict=True)
        for part in unicodedata.normalize("NFD", char)
    ]
    # NFD's canonical ordering: a stable sort of each stretch of combining characters by their class.
    ordered: list[tuple[str, int]] = []
    stretch: list[tuple[str, int]] = []
    for pair in pairs:
        if unicodedata.combining(pair[0]):
            stretch.append(pair)
            continue
        ordered += sorted(stretch, key=lambda p: unicodedata.combining(p[0]))
        stretch = []
        ordered.append(pair)
    ordered += sorted(stretch, key=lambda p: unicodedata.combining(p[0]))
    return "".join(char for char, _ in ordered), [s for _, s in ordered]


class GreedyMatcher:
    """Cut words into pieces, longest match first; `##` marks a piece that goes on within a word."""

    def __init__(self, pieces: Iterable[str]):
        """Index the pieces; ids are their places."""
        self._initial: dict[str, int] = {}
        self._inner: dict[str, int] = {}
        for piece_id, piece in enumerate(pieces):
            # No word but "#" itself begins with "#", which is punctuation: "##x" can only match within a word.
            if piece.startswith("##"):
                self._inner[piece[2:]] = piece_id
            else:
                self._initial[piece] = piece_id
        self._longest_initial = max(map(len, self._initial), default=0)
        self._longest_inner = max(map(len, self._inner), default=0)

    def match(self, word: str) -> list[int] | None:
        """Return the ids of the pieces of a word, or None where some part of it matches no piece."""
        whole = self._initial.get(word)
        if whole is not None:
            return [whole]
        ids = []
        pieces, longest, start, length = self._initial, self._longest_initial, 0, len(word)
        while start < length:
            for end in range(min(length, start + longest), start, -1):
                piece_id = pieces.get(word[start:end])
                if piece_id is not None:
                    break
            else:
                return None
            ids.append(piece_id)
            start, pieces, longest = end, self._inner, self._longest_inner
        return ids
