"""Split text into words and words into pieces, by the rules of google-research/bert's tokenization.py.

Everything here is a pure function of the text. The rules, in order:

1. Drop NUL, U+FFFD and all control and format characters (Cc, Cf) except tab, line feed and carriage return.
2. Make each character of the CJK blocks a word; Hangul, Hiragana and Katakana are ordinary letters.
3. Split at white space: Zs, tab, line feed, carriage return, U+2028 and U+2029.
4. For uncased vocabularies: lower-case. To strip accents: decompose (NFD), drop non-spacing marks (Mn). The original
   does both or neither; like HuggingFace's, this code can also do one of them.
5. Make each punctuation character a word: category P and all ASCII characters other than letters and digits.
6. Match greedily, longest piece first; a word with an unmatched part is unknown as a whole.

Steps 1 to 5 depend only on the text between white space, so tokenization.py can cache results by word.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

# Characters that str.split() treats as white space and the original drops (Cc). All other white space of split() is
# white space in the original too, so split() is exact once these are removed.
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
# A text can be split after these without changing a word: they never join two sides.
_SAFE_CUT = re.compile("[ \t\n\r\u3400-\u4dbf\u4e00-\u9fff]")


class _CodePointTable(dict[int, int | str | None]):
    """Table for str.translate that classifies code points on first use: a full table would take 0.5 s at start-up."""

    def __init__(self, classify: Callable[[str], str | None]):
        super().__init__()
        self._classify = classify

    def __missing__(self, code_point: int) -> int | str | None:
        replacement = self._classify(chr(code_point))
        value = code_point if replacement == chr(code_point) else replacement
        self[code_point] = value
        return value


def is_cjk(char: str) -> bool:
    """Return whether a character is always a separate word because it is in a CJK block."""
    code_point = ord(char)
    return any(first <= code_point <= last for first, last in _CJK_BLOCKS)


def is_punctuation(char: str) -> bool:
    """Return whether a character is always a separate word because it is punctuation."""
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


def _separate(char: str) -> str:
    return f" {char} " if is_punctuation(char) else char


def _strip_marks_and_separate(char: str) -> str | None:
    return None if unicodedata.category(char) == "Mn" else _separate(char)


_CLEANED = _CodePointTable(_clean)
_WITHOUT_MARKS = _CodePointTable(lambda char: None if unicodedata.category(char) == "Mn" else char)
_CASED = _CodePointTable(_separate)
_UNCASED = _CodePointTable(_strip_marks_and_separate)


def segments(text: str, *, max_chars: int = 1 << 20) -> Iterator[str]:
    """Split a long text where no word changes, so memory depends on `max_chars` and not on the text."""
    start = 0
    while len(text) - start > max_chars:
        cut = _SAFE_CUT.search(text, start + max_chars)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    if start < len(text) or not text:
        yield text[start:]


def basic_words(text: str, *, do_lower_case: bool, strip_accents: bool | None = None) -> list[str]:
    """Return the normalized words of a text, equal to the original's BasicTokenizer.

    `strip_accents` is `do_lower_case` if it is None.

    Lower-casing and NFD run on the whole text at once. White space has no case, stops the final-sigma rule, and is not
    reordered by NFD, so the result equals that of each word alone.
    """
    if text.isascii() and text.isalnum():  # most English words: nothing to drop, split or decompose
        return [text.lower() if do_lower_case else text]
    cleaned = text.translate(_CLEANED)
    if do_lower_case:
        cleaned = cleaned.lower()
    if do_lower_case if strip_accents is None else strip_accents:
        return unicodedata.normalize("NFD", cleaned).translate(_UNCASED).split()
    return cleaned.translate(_CASED).split()


def normalized_text(text: str, *, do_lower_case: bool, strip_accents: bool) -> str:
    """Return the text after steps 1, 2 and 4, each character by itself, as the `tokenizers` library normalizes.

    White space and punctuation stay where they are. A capital sigma never becomes a final one.
    """
    cleaned = text.translate(_CLEANED)
    if do_lower_case:
        cleaned = cleaned.replace("Σ", "σ").lower()
    return unicodedata.normalize("NFD", cleaned).translate(_WITHOUT_MARKS) if strip_accents else cleaned


def normalized_characters(text: str, *, do_lower_case: bool, strip_accents: bool) -> tuple[str, list[int]]:
    """Return the normalized text, and for each of its characters the index in `text` that it comes from."""
    parts = [normalized_text(char, do_lower_case=do_lower_case, strip_accents=strip_accents) for char in text]
    return "".join(parts), [index for index, part in enumerate(parts) for _ in part]


@dataclasses.dataclass(frozen=True)
class AlignedWord:
    """A normalized word, each of its characters with its half-open span in the text."""

    text: str
    starts: list[int]
    ends: list[int]


def aligned_words(text: str, *, do_lower_case: bool, strip_accents: bool | None = None) -> list[AlignedWord]:
    """Return the words of `basic_words`, each character with its span in `text`.

    A dropped mark belongs to the preceding character of its word, so a span never separates an accent from its letter.
    If one character becomes several (Hangul under NFD), all of them have its span.
    """
    words: list[AlignedWord] = []
    chars: list[str] = []
    sources: list[int] = []
    strip = do_lower_case if strip_accents is None else strip_accents

    def close_run():
        if chars:
            words.extend(_align_run("".join(chars), sources, do_lower_case=do_lower_case, strip=strip))
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
                words.extend(_align_run(char, [index], do_lower_case=do_lower_case, strip=strip))
    close_run()
    return words


def _align_run(run: str, sources: list[int], *, do_lower_case: bool, strip: bool) -> list[AlignedWord]:
    """Normalize a run free of white space and control characters, and split it at punctuation."""
    table = _UNCASED if strip else _CASED
    chars, chars_sources = _lower(run, sources) if do_lower_case else (run, sources)
    chars, chars_sources = _decompose(chars, chars_sources) if strip else (chars, chars_sources)
    words: list[tuple[list[str], list[int], list[int]]] = []
    continues = False
    for char, source in zip(chars, chars_sources, strict=True):
        separated = char.translate(table)
        if not separated:
            if words:
                ends = words[-1][2]
                ends[-1] = max(ends[-1], source + 1)
            continue
        if not continues or separated != char:
            words.append(([], [], []))
        letters, starts, ends = words[-1]
        letters.append(char)
        starts.append(source)
        ends.append(source + 1)
        continues = separated == char
    return [AlignedWord("".join(letters), starts, ends) for letters, starts, ends in words]


def _lower(run: str, sources: list[int]) -> tuple[str, list[int]]:
    # Only the final sigma depends on its neighbors, and both sigmas have length 1: lengths are per character.
    return run.lower(), [s for char, s in zip(run, sources, strict=True) for _ in char.lower()]


def _decompose(run: str, sources: list[int]) -> tuple[str, list[int]]:
    pairs = [(part, s) for char, s in zip(run, sources, strict=True) for part in unicodedata.normalize("NFD", char)]
    # NFD's canonical ordering: a stable sort of each run of combining characters by class.
    ordered: list[tuple[str, int]] = []
    marks: list[tuple[str, int]] = []
    for pair in pairs:
        if unicodedata.combining(pair[0]):
            marks.append(pair)
            continue
        ordered += sorted(marks, key=lambda p: unicodedata.combining(p[0]))
        marks = []
        ordered.append(pair)
    ordered += sorted(marks, key=lambda p: unicodedata.combining(p[0]))
    return "".join(char for char, _ in ordered), [s for _, s in ordered]


class GreedyMatcher:
    """Matcher of words against pieces, longest match first; `##` marks word-internal pieces."""

    def __init__(self, pieces: Iterable[str]):
        """Index the pieces; ids are their indices."""
        self._initial: dict[str, int] = {}
        self._inner: dict[str, int] = {}
        for piece_id, piece in enumerate(pieces):
            # "#" is punctuation and a separate word, so "##x" can only match inside a word.
            if piece.startswith("##"):
                self._inner[piece[2:]] = piece_id
            else:
                self._initial[piece] = piece_id
        self._longest_initial = max(map(len, self._initial), default=0)
        self._longest_inner = max(map(len, self._inner), default=0)

    def match(self, word: str) -> list[int] | None:
        """Return the ids of a word's pieces, or None if a part of it matches no piece."""
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
