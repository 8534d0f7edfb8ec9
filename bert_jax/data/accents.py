"""Whether accents are stripped: the default depends on the script, a vocabulary's own setting is kept."""

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable

from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer
from bert_jax.errors import UserError

_CHOICES = {"auto": None, "yes": True, "no": False}
_TRACE = 0.01  # fraction of the characters
# BERT strips the marks of these scripts: accents, and vowel points that most texts leave out. In other scripts, such as
# Thai, Devanagari or kana, marks are vowels, tones or parts of letters.
_STRIPPED_SCRIPTS = ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "ARMENIAN", "GEORGIAN", "HEBREW", "ARABIC", "COMBINING")


def strips_accents(setting: str, *, do_lower_case: bool, texts: Iterable[str]) -> tuple[bool | None, float]:
    """Return whether a new vocabulary strips accents (None: as `do_lower_case`), and the fraction that it would delete.

    The fraction counts the marks of scripts in which they are vowels, tones or parts of letters.
    """
    choice = _CHOICES[setting]
    if choice is not None:
        return (None if choice == do_lower_case else choice), 0.0
    if not do_lower_case:
        return None, 0.0
    marks = total = 0
    for text in texts:
        total += sum(map(len, text.split()))
        if not text.isascii():
            marks += _count_marks(text)
    fraction = marks / max(total, 1)
    return (False if fraction > _TRACE else None), fraction


def _count_marks(text: str) -> int:
    """Return the number of marks that belong to letters, as NFD separates them, outside of `_STRIPPED_SCRIPTS`."""
    count, base = 0, " "
    for char in unicodedata.normalize("NFD", text):
        if is_mark(char):
            count += not _is_stripped_script(char) or not _is_stripped_script(base)
        else:
            base = char
    return count


@functools.lru_cache(maxsize=1 << 16)
def is_mark(char: str) -> bool:
    """Return whether a character is a mark that stripping deletes; variation selectors of emoji are not accents."""
    return unicodedata.category(char) == "Mn" and not "\ufe00" <= char <= "\ufe0f"


@functools.lru_cache(maxsize=1 << 16)
def _is_stripped_script(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_STRIPPED_SCRIPTS) or unicodedata.category(char)[0] not in "LM"


def with_accents(tokenizer: Tokenizer, setting: str) -> Tokenizer:
    """Return a tokenizer that strips accents as `data.strip_accents` says.

    Raises:
      UserError: if its own files say otherwise, or it is a SentencePiece model, which normalizes text by itself.
    """
    choice = _CHOICES[setting]
    if choice is None or choice == tokenizer.strip_accents:
        return tokenizer
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(f"a {tokenizer.kind} model normalizes text by itself: set config.data.strip_accents=auto")
    if tokenizer.vocabulary.strip_accents is not None:
        raise UserError(
            f"the vocabulary's tokenizer_config.json says strip_accents={tokenizer.strip_accents}: set "
            "config.data.strip_accents=auto, or learn another vocabulary"
        )
    return WordPieceTokenizer(dataclasses.replace(tokenizer.vocabulary, strip_accents=choice))
