"""A tokenizer.json of a vocabulary other than WordPiece (BPE, Unigram), run by the tokenizers library.

The files are kept as they are, so an export has the tokenizer that the model came with.
"""

import functools
import hashlib
import json
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.data.tokenizer import MASK, EncodedBatch, Encoding, Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import read_limited, write_bytes
from bert_jax.json_files import parse_object, read_json

FAST_FILE = "tokenizer.json"
_OTHER_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_MAX_BYTES = 256 << 20
# The special tokens by our names: HuggingFace's fields, the first that is there, and the usual text.
_SPECIALS = {
    "cls": (("cls_token", "bos_token"), "[CLS]"),
    "sep": (("sep_token", "eos_token"), "[SEP]"),
    "mask": (("mask_token",), "[MASK]"),
    "pad": (("pad_token",), "[PAD]"),
}
_WORD_MARKS = ("Ġ", "Ċ", "▁")  # of a space or line break before a piece
_SURROGATES = dict.fromkeys(range(55296, 57344), "�")  # cannot be encoded in UTF-8


def is_fast(folder: Path) -> bool:
    """Return whether a folder has a tokenizer.json of a vocabulary other than WordPiece.

    Raises:
      UserError: if that file is damaged.
    """
    file = folder / FAST_FILE
    if not file.is_file():
        return False
    model = read_json(file).get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    return isinstance(kind, str) and kind != "WordPiece"


def load_fast_tokenizer(folder: Path) -> "FastTokenizer":
    """Load the tokenizer of a folder whose tokenizer.json `is_fast`.

    Raises:
      UserError: if a file is damaged, a special token is missing, or texts are not framed as `[CLS] A [SEP] B [SEP]`.
    """
    contents = {}
    for name in (FAST_FILE, *_OTHER_FILES):
        if (folder / name).is_file():
            try:
                contents[name] = read_limited(folder / name, max_bytes=_MAX_BYTES)
            except OSError as error:
                raise UserError(f"{folder / name} cannot be read: {error.strerror}") from None
    settings: dict[str, Any] = {}
    for name in reversed(_OTHER_FILES):
        if name in contents:
            settings |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    tokens = {name: _token_text(settings, *options) for name, options in _SPECIALS.items()}
    try:
        return FastTokenizer(contents, special_tokens=tokens)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _token_text(settings: Mapping[str, Any], fields: Sequence[str], usual: str) -> str:
    for field in fields:
        value = settings.get(field)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            return value
    return usual


def _library() -> Any:
    try:
        import tokenizers  # optional
    except ImportError:
        raise UserError(
            f"{FAST_FILE} has no WordPiece vocabulary; others need the tokenizers library: "
            "pip install 'bert_jax[tokenizers]'"
        ) from None
    # Texts are tokenized in several processes, which the library's own threads would disturb.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return tokenizers


class FastTokenizer(Tokenizer):
    """A tokenizer of the tokenizers library. The text of a special token is ordinary text, as in the others.

    Raises UserError if the library is missing, or the files are not a tokenizer that this package can use.
    """

    def __init__(self, contents: Mapping[str, bytes], *, special_tokens: Mapping[str, str]):
        """Create a tokenizer from the contents of its files; `special_tokens` are the texts of cls, sep, mask, pad."""
        self._contents, self._special_tokens = dict(contents), dict(special_tokens)
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_buffer(contents[FAST_FILE])
        except Exception as error:  # the library raises plain Exception
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{FAST_FILE} cannot be read by the tokenizers library ({reason}): restore it") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(ids.values()) + 1)
        for piece, index in ids.items():
            pieces[index] = piece
        self.pieces = tuple(pieces)
        missing = [text for text in special_tokens.values() if text not in ids]
        if missing:
            raise UserError(f"its tokenizer has no special token {', '.join(missing)}: name it in {_OTHER_FILES[0]}")
        self.cls_id, self.sep_id, self.mask_id, self.pad_id = (ids[special_tokens[name]] for name in _SPECIALS)
        structure = parse_object(contents[FAST_FILE])
        model, normalizer = structure["model"], structure.get("normalizer")
        self.kind = str(model["type"])
        self.unk_id = ids.get(str(model.get("unk_token")), -1)
        kinds = {str(part.get("type")): part for part in _parts(normalizer)}
        self.do_lower_case = "Lowercase" in kinds or kinds.get("BertNormalizer", {}).get("lowercase") is True
        self.strip_accents = "StripAccents" in kinds or bool(kinds.get("BertNormalizer", {}).get("strip_accents"))
        digest = hashlib.sha256(contents[FAST_FILE])
        digest.update(json.dumps([self.cls_id, self.sep_id, self.mask_id, self.pad_id]).encode())
        self.fingerprint = digest.hexdigest()
        self._added = {token["content"]: token for token in structure.get("added_tokens") or []}
        self.is_word_start = np.array([self._starts_word(piece) for piece in pieces], bool)
        self._check_frame()
        self._tokenizer.encode_special_tokens = True
        # A word in a text has the space before it; a word alone gets one, as with `add_prefix_space` in HuggingFace.
        self._space = "" if self._ids("b") == self._ids("a b")[len(self._ids("a")) :] else " "

    def __reduce__(self):
        """Pickle only the files."""
        return functools.partial(FastTokenizer, self._contents, special_tokens=self._special_tokens), ()

    def _starts_word(self, piece: str) -> bool:
        return piece in self._added or piece.startswith(_WORD_MARKS) or piece[:1] in string.punctuation

    def _check_frame(self) -> None:
        def framed(*texts: str) -> list[int]:
            return self._tokenizer.encode(*texts, add_special_tokens=True).ids

        first, second = self._ids("a"), self._ids("b")
        expected, _ = self.special_ids.frame(first, second)
        if framed("a") != self.special_ids.frame(first)[0] or framed("a", "b") != expected:
            raise UserError(
                f"{FAST_FILE} frames texts otherwise than as [CLS] A [SEP] B [SEP], which is all that is supported: "
                "give another model"
            )

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch_arrays(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of all texts as one array: the fastest method."""
        clean = [text.translate(_SURROGATES) if not text.isascii() else text for text in texts]
        encoded = [item.ids for item in self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return EncodedBatch(np.fromiter(chain.from_iterable(encoded), self.ids_dtype, count=lengths.sum()), lengths)

    def encode_sentences(self, sentences: Sequence[str]) -> EncodedBatch:
        """Return the ids of the sentences of one document: after the first, with the space before them."""
        spaced = [f"{self._space}{sentence}" if number else sentence for number, sentence in enumerate(sentences)]
        return self.encode_batch_arrays(spaced)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ids of each word, with the space before it."""
        return self.encode_batch([f"{self._space}{word}" for word in words])

    def split_at_masks(self, text: str) -> list[str]:
        """Return the texts around [MASK] or the tokenizer's own mask token, which may take the spaces next to it."""
        mask = self._special_tokens["mask"]
        parts = text.replace(MASK, mask).split(mask)
        token = self._added.get(mask, {})
        if token.get("lstrip"):
            parts = [*(part.rstrip() for part in parts[:-1]), parts[-1]]
        if token.get("rstrip"):
            parts = [parts[0], *(part.lstrip() for part in parts[1:])]
        return parts

    def encode_with_offsets(self, text: str) -> Encoding:
        """Return the ids of a text with their spans, without the white space before them."""
        encoded = self._tokenizer.encode(text.translate(_SURROGATES), add_special_tokens=False)
        spans = [(end - len(text[start:end].lstrip()), end) for start, end in encoded.offsets]
        return Encoding(list(encoded.ids), spans)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens appear by name."""
        return str(self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=False))

    def save(self, directory: str | os.PathLike) -> None:
        """Write the files that the tokenizer was created from."""
        folder = Path(directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self._contents.items():
                write_bytes(folder / name, content)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}: choose another folder") from None


def _parts(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield an entry of tokenizer.json and all entries in it."""
    if isinstance(tree, Mapping):
        yield tree
        for value in tree.values():
            yield from _parts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _parts(value)
