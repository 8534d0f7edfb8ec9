"""WordPiece vocabulary: read, write and learn it."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from bert_jax.data.vocabulary_learning import learn_pieces
from bert_jax.errors import UserError
from bert_jax.files import read_limited, write_bytes
from bert_jax.json_files import load_json
from bert_jax.json_forms import is_encodable

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"
_MAX_BYTES = 256 << 20  # of a vocabulary file: millions of tokens


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Pieces ordered by id, and whether text is lower-cased.

    Raises UserError if a special token is missing or a piece occurs twice.
    """

    pieces: tuple[str, ...]
    do_lower_case: bool

    def __post_init__(self):
        if len(self._ids) != len(self.pieces):
            first, piece = next((i, piece) for i, piece in enumerate(self.pieces) if self._ids[piece] != i)
            raise UserError(
                f"{piece!r} occurs twice, in lines {first + 1} and {self._ids[piece] + 1}: remove one, because ids "
                "must be unique"
            )
        broken = next((piece for piece in self.pieces if not is_encodable(piece)), None)
        if broken is not None:
            raise UserError(f"the piece {broken!a:.60} holds half of a surrogate pair: remove or correct it")
        missing = [piece for piece in SPECIAL_PIECES if piece not in self._ids]
        if missing:
            raise UserError(
                f"the special tokens {' '.join(missing)} are missing: add them; BERT needs {' '.join(SPECIAL_PIECES)}"
            )

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: piece_id for piece_id, piece in enumerate(self.pieces)}

    @property
    def size(self) -> int:
        """Return the number of pieces."""
        return len(self.pieces)

    @property
    def pad_id(self) -> int:
        """Return the id of [PAD]."""
        return self._ids["[PAD]"]

    @property
    def unk_id(self) -> int:
        """Return the id of [UNK]."""
        return self._ids["[UNK]"]

    @property
    def cls_id(self) -> int:
        """Return the id of [CLS]."""
        return self._ids["[CLS]"]

    @property
    def sep_id(self) -> int:
        """Return the id of [SEP]."""
        return self._ids["[SEP]"]

    @property
    def mask_id(self) -> int:
        """Return the id of [MASK]."""
        return self._ids["[MASK]"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of casing and pieces: equal if ids mean the same."""
        header = f"do_lower_case={self.do_lower_case}\n"
        return hashlib.sha256((header + "\n".join(self.pieces)).encode("utf-8", "surrogatepass")).hexdigest()

    @functools.cached_property
    def is_word_start(self) -> np.ndarray:
        """Return bool [V]: False for pieces inside a word (`##`)."""
        return np.array([not piece.startswith("##") for piece in self.pieces], bool)


def load_vocabulary(path: str | os.PathLike, *, do_lower_case: bool | None = None) -> Vocabulary:
    """Read a vocabulary file, one piece per line (the line number is the id), or a directory that contains vocab.txt.

    Casing comes from tokenizer_config.json in the same folder, else from `do_lower_case`, else from the pieces: cased
    if a piece other than the special tokens has an upper-case letter.

    Raises UserError naming the file if it is missing, not text or empty; has a blank or repeated line; lacks a special
    token; or if the two sources disagree about casing.
    """
    path = pathlib.Path(path)
    file = path / VOCABULARY_FILE if path.is_dir() else path
    pieces = _read_pieces(file)
    casing = read_casing(file.parent / CONFIG_FILE, do_lower_case=do_lower_case)
    try:
        return Vocabulary(pieces, do_lower_case=_looks_uncased(pieces) if casing is None else casing)
    except UserError as error:
        raise UserError(f"vocabulary {file}: {error}") from None


def _read_pieces(file: pathlib.Path) -> tuple[str, ...]:
    try:
        text = read_limited(file, max_bytes=_MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"vocabulary {file} does not exist: name a {VOCABULARY_FILE} or a directory that contains one"
        ) from None
    except OSError as error:
        raise UserError(f"vocabulary {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"vocabulary {file} is not UTF-8 text (byte {error.start}): name a file with one token per line"
        ) from None
    if "\0" in text:
        raise UserError(f"vocabulary {file} is a binary file: name a text file with one token per line")
    if not text.strip():
        raise UserError(f"vocabulary {file} is empty: name a file with one token per line")
    lines = text.removesuffix("\n").split("\n")
    pieces = []
    for number, line in enumerate(lines, start=1):
        # The released Chinese vocabulary contains U+2028 and ##U+2028, which stripping would turn into blank and "##".
        # No word contains white space, so their names do not affect ids.
        piece = line.strip()
        if piece in ("", "##"):
            piece = line.strip(" \t\r")
        if not piece:
            raise UserError(f"vocabulary {file}: line {number} of {len(lines)} is blank: remove it or write its token")
        pieces.append(piece)
    return tuple(pieces)


def read_casing(config_file: pathlib.Path, *, do_lower_case: bool | None) -> bool | None:
    """Return `do_lower_case` from a tokenizer_config.json or the caller; None if neither sets it.

    Raises UserError if the two differ, or if the file sets rules other than the original's.
    """
    try:
        settings = load_json(config_file)
    except FileNotFoundError:
        return do_lower_case
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file} cannot be read as JSON ({error}): fix or remove it") from None
    if not isinstance(settings, dict):
        raise UserError(f"{config_file} must contain a JSON object: fix or remove it")
    saved = settings.get("do_lower_case")
    if saved is not None and not isinstance(saved, bool):
        raise UserError(f"{config_file}: do_lower_case is {saved!r}: write true or false")
    if saved is not None and do_lower_case is not None and saved != do_lower_case:
        raise UserError(
            f"do_lower_case={do_lower_case} is set, but {config_file} says {saved}: type do_lower_case={saved}, or "
            "use another vocabulary"
        )
    casing = do_lower_case if saved is None else saved
    strip_accents = settings.get("strip_accents")
    if strip_accents is not None and casing is not None and strip_accents != casing:
        raise UserError(
            f"{config_file}: strip_accents={strip_accents} with do_lower_case={casing} is not supported: write "
            f"strip_accents={casing}; BERT strips accents if and only if it lower-cases"
        )
    if settings.get("tokenize_chinese_chars") is False:
        raise UserError(f"{config_file}: tokenize_chinese_chars=False is not supported: write true")
    return casing


def _looks_uncased(pieces: Iterable[str]) -> bool:
    specials = (("[", "]"), ("<", ">"))
    return all(piece.lower() == piece or (piece[0], piece[-1]) in specials for piece in pieces)


def save_vocabulary(vocabulary: Vocabulary, *, directory: str | os.PathLike) -> None:
    """Write vocab.txt and tokenizer_config.json, each atomically; create the directory if necessary.

    Raises UserError if the directory cannot be written.
    """
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.do_lower_case,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    }
    directory = pathlib.Path(directory)
    write_whole(directory / VOCABULARY_FILE, content="".join(f"{piece}\n" for piece in vocabulary.pieces).encode())
    write_whole(directory / CONFIG_FILE, content=(json.dumps(settings, indent=2) + "\n").encode())


def write_whole(file: pathlib.Path, *, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, never a part."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}: choose a directory that you may write to"
        ) from None


def learn_vocabulary(
    texts: Iterable[str],
    *,
    vocab_size: int,
    do_lower_case: bool,
    num_threads: int = 1,
    num_unused: int = 0,
    character_coverage: float = 0.99999,
    max_distinct_words: int = 1_000_000,
) -> Vocabulary:
    """Learn a vocabulary of exactly `vocab_size` pieces from texts; vocabulary_learning.py describes the method.

    The same texts in the same order give the same pieces, for any `num_threads`. `num_unused` slots [unused0] ...
    follow the special tokens. Memory grows with `max_distinct_words`, not with the texts.

    Raises UserError if the texts do not support a vocabulary of that size; the message gives the closest size.
    """
    reserved = (*SPECIAL_PIECES, *(f"[unused{i}]" for i in range(num_unused)))
    pieces = learn_pieces(
        texts,
        num_pieces=vocab_size - len(reserved),
        num_reserved=len(reserved),
        do_lower_case=do_lower_case,
        num_threads=num_threads,
        character_coverage=character_coverage,
        max_distinct_words=max_distinct_words,
    )
    return Vocabulary((*reserved, *pieces), do_lower_case=do_lower_case)
