"""WordPiece vocabulary: read, write and learn it."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bert_jax.data.added_tokens import AddedToken, read_added_tokens
from bert_jax.data.tokenizer_settings import check_settings, read_word_limit
from bert_jax.data.vocabulary_learning import learn_pieces
from bert_jax.errors import UserError
from bert_jax.files import read_limited, write_bytes
from bert_jax.json_files import load_json, read_json
from bert_jax.json_forms import is_encodable

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"
DEFAULT_VOCAB_SIZE = 30522  # of the released uncased vocabulary
VOCABULARY_BYTES = 128 << 20  # of text that a vocabulary is learned from
MAX_INPUT_CHARS_PER_WORD = 200  # in the original
_MAX_BYTES = 256 << 20  # of a vocabulary file: millions of tokens


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Pieces ordered by id, and whether text is lower-cased.

    Raises UserError if a special token is missing or a piece occurs twice.
    """

    pieces: tuple[str, ...]
    do_lower_case: bool
    strip_accents: bool | None = None  # None: as do_lower_case
    added: tuple[AddedToken, ...] = ()  # tokens kept whole in text; those not in `pieces` have the ids after them
    max_input_chars_per_word: int = MAX_INPUT_CHARS_PER_WORD  # a longer word is [UNK]

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
    def all_pieces(self) -> tuple[str, ...]:
        """Return the pieces of all ids: `pieces`, then the added tokens that are not among them."""
        further = {token.id: token.content for token in self.added if token.id >= len(self.pieces)}
        return (*self.pieces, *(further[index] for index in sorted(further)))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: piece_id for piece_id, piece in enumerate(self.pieces)}

    @property
    def strips_accents(self) -> bool:
        """Return whether accents and other non-spacing marks are removed."""
        return self.do_lower_case if self.strip_accents is None else self.strip_accents

    @property
    def size(self) -> int:
        """Return the number of ids."""
        return len(self.all_pieces)

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
        """Return the SHA-256, in hexadecimal, of casing, pieces and added tokens: equal if ids mean the same."""
        header = f"do_lower_case={self.do_lower_case}\n"
        if self.strips_accents != self.do_lower_case:
            header += f"strip_accents={self.strips_accents}\n"
        if self.max_input_chars_per_word != MAX_INPUT_CHARS_PER_WORD:
            header += f"max_input_chars_per_word={self.max_input_chars_per_word}\n"
        # The flags that do not affect ids are left out.
        header += "".join(
            f"added={token.id} {token.single_word} {token.normalized} {token.content!r}\n"
            for token in sorted(self.added, key=lambda token: token.id)
        )
        return hashlib.sha256((header + "\n".join(self.pieces)).encode("utf-8", "surrogatepass")).hexdigest()

    @functools.cached_property
    def is_word_start(self) -> np.ndarray:
        """Return bool [V]: False for pieces inside a word (`##`)."""
        starts = [not piece.startswith("##") for piece in self.pieces]
        return np.array(starts + [True] * (len(self.all_pieces) - len(starts)), bool)


def load_vocabulary(
    path: str | os.PathLike, *, do_lower_case: bool | None = None, fast_tokens: Sequence[Any] = ()
) -> Vocabulary:
    """Read a vocabulary file, one piece per line (the line number is the id), or a directory that contains vocab.txt.

    Casing comes from tokenizer_config.json in the same folder, else from `do_lower_case`, else from the pieces: cased
    if a piece other than the special tokens has an upper-case letter. `fast_tokens` are the added tokens of a
    tokenizer.json; those of the folder's other files are read.

    Raises UserError naming the file if it is missing, not text or empty; has a blank or repeated line; lacks a special
    token; or if the two sources disagree about casing.
    """
    path = pathlib.Path(path)
    file = path / VOCABULARY_FILE if path.is_dir() else path
    pieces = _read_pieces(file)
    config_file = file.parent / CONFIG_FILE
    casing = read_casing(config_file, do_lower_case=do_lower_case)
    settings = read_json(config_file) if config_file.is_file() else {}
    check_settings(settings, file=config_file)
    added = read_added_tokens(file.parent, pieces=pieces, settings=settings, standard=SPECIAL_PIECES, fast=fast_tokens)
    limit = read_word_limit(settings, file=config_file, default=MAX_INPUT_CHARS_PER_WORD)
    try:
        return Vocabulary(
            pieces,
            do_lower_case=_looks_uncased(pieces) if casing is None else casing,
            strip_accents=read_strip_accents(config_file),
            added=added,
            max_input_chars_per_word=limit,
        )
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
    if settings.get("tokenize_chinese_chars") is False:
        raise UserError(f"{config_file}: tokenize_chinese_chars=False is not supported: write true")
    return casing


def read_strip_accents(config_file: pathlib.Path) -> bool | None:
    """Return `strip_accents` from a tokenizer_config.json, None (as do_lower_case) if it is not set.

    Raises UserError if it is neither true, false nor null.
    """
    settings = load_json(config_file) if config_file.is_file() else {}
    value = settings.get("strip_accents")
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{config_file}: strip_accents is {value!r}: write true, false or null")
    return value


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
        "strip_accents": vocabulary.strip_accents,
        "tokenize_chinese_chars": True,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    }
    if vocabulary.max_input_chars_per_word != MAX_INPUT_CHARS_PER_WORD:
        settings["max_input_chars_per_word"] = vocabulary.max_input_chars_per_word
    if vocabulary.added:
        settings["added_tokens_decoder"] = added_tokens_decoder(vocabulary)
    directory = pathlib.Path(directory)
    write_whole(directory / VOCABULARY_FILE, content="".join(f"{piece}\n" for piece in vocabulary.pieces).encode())
    write_whole(directory / CONFIG_FILE, content=(json.dumps(settings, indent=2) + "\n").encode())


def added_tokens_decoder(vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """Return the field of tokenizer_config.json that lists the added tokens by id."""
    fields = ((str(token.id), dataclasses.asdict(token)) for token in vocabulary.added)
    return {index: {name: value for name, value in token.items() if name != "id"} for index, token in fields}


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
    strip_accents: bool | None = None,
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
        strip_accents=strip_accents,
        num_threads=num_threads,
        character_coverage=character_coverage,
        max_distinct_words=max_distinct_words,
    )
    return Vocabulary((*reserved, *pieces), do_lower_case=do_lower_case, strip_accents=strip_accents)
