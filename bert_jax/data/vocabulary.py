"""Hold a vocabulary, read it, write it, learn it: pieces in the order of their ids, and their casing."""

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
from bert_jax.files import load_json, write_bytes

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Hold pieces in the order of their ids, and whether text is lower-cased before it is cut into them.

    Raises UserError where a special piece is missing or a piece stands twice.
    """

    pieces: tuple[str, ...]
    do_lower_case: bool

    def __post_init__(self):
        if len(self._ids) != len(self.pieces):
            first, piece = next((i, piece) for i, piece in enumerate(self.pieces) if self._ids[piece] != i)
            raise UserError(
                f"the piece {piece!r} stands twice, in lines {first + 1} and {self._ids[piece] + 1}: "
                "ids would be ambiguous; remove one"
            )
        missing = [piece for piece in SPECIAL_PIECES if piece not in self._ids]
        if missing:
            raise UserError(
                f"the special pieces {' '.join(missing)} are missing; BERT needs {' '.join(SPECIAL_PIECES)}"
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
        """Return the SHA-256, in hexadecimal, of casing and pieces: equal where ids mean the same."""
        header = f"do_lower_case={self.do_lower_case}\n"
        return hashlib.sha256((header + "\n".join(self.pieces)).encode("utf-8", "surrogatepass")).hexdigest()

    @functools.cached_property
    def is_word_start(self) -> np.ndarray:
        """Return bool [V]: False for the pieces that go on within a word (`##`)."""
        return np.array([not piece.startswith("##") for piece in self.pieces], bool)


def load_vocabulary(path: str | os.PathLike, *, do_lower_case: bool | None = None) -> Vocabulary:
    """Read a vocabulary: a file with a piece a line (its line is its id), or a directory that holds vocab.txt.

    Casing comes from tokenizer_config.json beside the file, else from `do_lower_case`, else from the pieces: cased
    where one that is not special has an upper-case letter.

    Raises UserError naming the file: not there, not text, empty, a blank or a repeated line, a special piece missing,
    or a casing that the two sources give differently.
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
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"vocabulary {file} does not exist; name a {VOCABULARY_FILE} or a directory that holds one"
        ) from None
    except OSError as error:
        raise UserError(f"vocabulary {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"vocabulary {file} is not UTF-8 text (byte {error.start}); name a file with a piece a line"
        ) from None
    if "\0" in text:
        raise UserError(f"vocabulary {file} is a binary file; name a text file with a piece a line")
    if not text.strip():
        raise UserError(f"vocabulary {file} is empty; name a file with a piece a line")
    lines = text.removesuffix("\n").split("\n")
    pieces = []
    for number, line in enumerate(lines, start=1):
        # The released Chinese vocabulary has U+2028 and ##U+2028: stripped they would lose their names, and as no word
        # holds white space, what they are called changes no ids.
        piece = line.strip()
        if piece in ("", "##"):
            piece = line.strip(" \t\r")
        if not piece:
            raise UserError(f"vocabulary {file}: line {number} of {len(lines)} is blank; remove it or name its piece")
        pieces.append(piece)
    return tuple(pieces)


def read_casing(config_file: pathlib.Path, *, do_lower_case: bool | None) -> bool | None:
    """Return `do_lower_case` as a tokenizer_config.json and the caller have it; None where neither says.

    Raises UserError where the two differ, or where the file asks for rules that are not the original's.
    """
    try:
        settings = load_json(config_file)
    except FileNotFoundError:
        return do_lower_case
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file} cannot be read as JSON ({error}); mend or remove it") from None
    if not isinstance(settings, dict):
        raise UserError(f"{config_file} must hold a JSON object; mend or remove it")
    found = settings.get("do_lower_case")
    if found is not None and not isinstance(found, bool):
        raise UserError(f"{config_file}: do_lower_case is {found!r}; write true or false")
    if found is not None and do_lower_case is not None and found != do_lower_case:
        raise UserError(
            f"do_lower_case={do_lower_case} was asked for, but {config_file} says {found}; "
            f"type do_lower_case={found} or use another vocabulary"
        )
    casing = do_lower_case if found is None else found
    strip_accents = settings.get("strip_accents")
    if strip_accents is not None and casing is not None and strip_accents != casing:
        raise UserError(
            f"{config_file}: strip_accents={strip_accents} with do_lower_case={casing} is not supported; "
            "BERT strips accents exactly where it lower-cases"
        )
    if settings.get("tokenize_chinese_chars") is False:
        raise UserError(f"{config_file}: tokenize_chinese_chars=False is not supported; BERT sets CJK characters apart")
    return casing


def _looks_uncased(pieces: Iterable[str]) -> bool:
    specials = (("[", "]"), ("<", ">"))
    return all(piece.lower() == piece or (piece[0], piece[-1]) in specials for piece in pieces)


def save_vocabulary(vocabulary: Vocabulary, *, directory: str | os.PathLike) -> None:
    """Write vocab.txt and tokenizer_config.json, each whole or not at all; the directory is made where it is missing.

    Raises UserError where the directory cannot be written.
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
    """Write a file so that a reader finds the old content or the new one, never a part."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name a directory you may write to") from None


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
    """Learn a vocabulary of exactly `vocab_size` pieces from texts; how is told in vocabulary_learning.py.

    The same texts in the same order give the same pieces, for any `num_threads`. `num_unused` slots [unused0] ...
    follow the special pieces. Memory grows with `max_distinct_words`, not with the texts.

    Raises UserError where the texts support no vocabulary of that size, naming the nearest size they do.
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
