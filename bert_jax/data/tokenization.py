"""Tokenizers: WordPiece, identical to google-research/bert's tokenization.py, or a SentencePiece model.

The fast path is `encode_batch_arrays`: it joins the texts of a batch, splits them once at white space, and looks up
each word in a cache; the rules of wordpiece.py run only for new words.
"""

import array
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise

import numpy as np
import sentencepiece

from bert_jax.data.added_tokens import AddedTokenSplitter
from bert_jax.data.fast_tokenizer import is_fast, load_fast_tokenizer
from bert_jax.data.tokenizer import EncodedBatch, Encoding, Tokenizer
from bert_jax.data.vocabulary import (
    CONFIG_FILE,
    VOCABULARY_FILE,
    Vocabulary,
    load_vocabulary,
    read_casing,
    save_vocabulary,
    write_whole,
)
from bert_jax.data.word_cache import WordCache
from bert_jax.data.wordpiece import CONTROL_WHITE_SPACE, GreedyMatcher, aligned_words, basic_words, segments
from bert_jax.errors import UserError
from bert_jax.files import read_limited

MODEL_FILE = "spiece.model"
_MAX_MODEL_BYTES = 256 << 20
_BATCH_CHARS = 1 << 18  # characters joined at a time: a batch's words and ids fit into a core's cache


class WordPieceTokenizer(Tokenizer):
    """WordPiece tokenizer, with the same ids as the original for every text.

    Between `cache_size` and twice as many words are cached (about 200 bytes each). A word of more than
    `max_input_chars_per_word` characters after normalization is [UNK]: the vocabulary's limit, 200 in the original.
    Added tokens of the vocabulary are kept whole, and the text between them is tokenized part by part.
    """

    kind = "WordPiece"

    def __init__(
        self, vocabulary: Vocabulary, *, max_input_chars_per_word: int | None = None, cache_size: int = 1 << 17
    ):
        """Create a tokenizer; pickling is cheap and drops the cache."""
        self.vocabulary = vocabulary
        self.pieces = vocabulary.all_pieces
        self.do_lower_case = vocabulary.do_lower_case
        self.strip_accents = vocabulary.strips_accents
        self.pad_id, self.unk_id = vocabulary.pad_id, vocabulary.unk_id
        self.cls_id, self.sep_id, self.mask_id = vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id
        self.fingerprint = vocabulary.fingerprint
        self.is_word_start = vocabulary.is_word_start
        self._options = {"max_input_chars_per_word": max_input_chars_per_word, "cache_size": cache_size}
        self._max_chars = max_input_chars_per_word or vocabulary.max_input_chars_per_word
        rules = {"do_lower_case": self.do_lower_case, "strip_accents": self.strip_accents}
        self._splitter = AddedTokenSplitter(vocabulary.added, **rules) if vocabulary.added else None
        self._matcher = GreedyMatcher(vocabulary.pieces)
        self._piece_lengths = [len(piece) - 2 * piece.startswith("##") for piece in vocabulary.pieces]
        # A value that no id uses separates the texts of a batch: 65,535 in uint16, -1 in int32.
        self._break = np.array(-1, np.int32).astype(self.ids_dtype)
        self._ids_of_basic_word = WordCache(self._encode_basic_word, size=cache_size)
        self._ids_of_word = WordCache(self._encode_word, size=cache_size)
        self._encoding_of_word = WordCache(self._encode_word_with_offsets, size=cache_size)

    def __reduce__(self):
        """Pickle only the vocabulary and the options."""
        return functools.partial(WordPieceTokenizer, self.vocabulary, **self._options), ()

    @property
    def max_input_chars_per_word(self) -> int:
        """Return the limit on the characters of a word: a longer one is [UNK]."""
        return self._max_chars

    def encode_batch_arrays(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of all texts as one array: the fastest method."""
        if self._splitter is None:
            return self._encode_ordinary(texts)
        return EncodedBatch(*self._splitter.encode(texts, ordinary=self._encode_ordinary, dtype=self.ids_dtype))

    def _encode_ordinary(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of texts without added tokens."""
        ids: list[np.ndarray] = []
        lengths: list[int] = []
        for group in _groups(texts):
            if len(group) == 1:
                parts = [self._lookup(_drop_controls(part.replace("\0", ""))) for part in segments(group[0])]
                ids += parts
                lengths.append(sum(map(len, parts)))
                continue
            if any("\0" in text for text in group):
                group = [text.replace("\0", "") for text in group]
            # The rules drop NUL, so it can separate the texts.
            joined = self._lookup(_drop_controls(" \0 ".join(group)))
            breaks = np.flatnonzero(joined == self._break)
            lengths += (np.diff(breaks, prepend=-1, append=len(joined)) - 1).tolist()
            ids.append(np.delete(joined, breaks))
        flat = np.concatenate(ids) if ids else np.zeros(0, self.ids_dtype)
        return EncodedBatch(flat, np.array(lengths, np.int64))

    def _lookup(self, text: str) -> np.ndarray:
        return np.frombuffer(b"".join(map(self._ids_of_word.__getitem__, text.split())), self.ids_dtype)

    def _encode_word(self, word: str) -> bytes:
        if word == "\0":
            return self._break.tobytes()
        words = basic_words(word, do_lower_case=self.do_lower_case, strip_accents=self.strip_accents)
        return b"".join(map(self._ids_of_basic_word.__getitem__, words))

    def _encode_basic_word(self, word: str) -> bytes:
        return array.array(np.dtype(self.ids_dtype).char, self._match(word)).tobytes()

    def _match(self, word: str) -> list[int]:
        ids = None if len(word) > self._max_chars else self._matcher.match(word)
        return [self.unk_id] if ids is None else ids

    def encode_with_offsets(self, text: str) -> Encoding:
        """Return the ids of a text with their spans.

        [UNK] spans its word. An accent removed by normalization belongs to the span of its letter. Pieces of a single
        character (Hangul under NFD) share its span.
        """
        ids, offsets = list[int](), list[tuple[int, int]]()
        for first, last, token_id in self._splitter.split(text) if self._splitter else [(0, len(text), None)]:
            if token_id is not None:
                ids.append(token_id)
                offsets.append((first, last))
            for match in _WORD.finditer(text, first, last) if token_id is None else ():
                shift = match.start()
                encoding = self._encoding_of_word[match.group()]
                ids += encoding.ids
                offsets += [(start + shift, end + shift) for start, end in encoding.offsets]
        return Encoding(ids, offsets)

    def _encode_word_with_offsets(self, word: str) -> Encoding:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for aligned in aligned_words(word, do_lower_case=self.do_lower_case, strip_accents=self.strip_accents):
            word_ids = self._match(aligned.text)
            ids += word_ids
            if word_ids == [self.unk_id]:
                offsets.append((min(aligned.starts), max(aligned.ends)))
                continue
            bounds = accumulate((self._piece_lengths[piece_id] for piece_id in word_ids), initial=0)
            offsets += [(min(aligned.starts[a:b]), max(aligned.ends[a:b])) for a, b in pairwise(bounds)]
        return Encoding(ids, offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the pieces with a space between words; ids do not keep the original spaces."""
        return " ".join(self.convert_ids_to_pieces(ids)).replace(" ##", "")

    def save(self, directory: str | os.PathLike) -> None:
        """Write vocab.txt and tokenizer_config.json."""
        save_vocabulary(self.vocabulary, directory=directory)


# White space as in str.split(), without the control characters that the rules drop.
_WORD = re.compile(rf"[\S{CONTROL_WHITE_SPACE}]+")


def _drop_controls(text: str) -> str:
    for control in CONTROL_WHITE_SPACE:
        if control in text:
            text = text.replace(control, "")
    return text


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield groups of texts with at most _BATCH_CHARS characters; a longer text is its own group."""
    group: list[str] = []
    chars = 0
    for text in texts:
        if chars + len(text) > _BATCH_CHARS and group:
            yield group
            group, chars = [], 0
        group.append(text)
        chars += len(text)
    if group:
        yield group


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece tokenizer in ALBERT's layout: [CLS], [SEP], [MASK] and the padding are control symbols.

    The model normalizes the text; `do_lower_case` lower-cases it before that and does nothing else. If it is None, text
    is lower-cased if no piece of the model has an upper-case letter.

    Raises UserError if the bytes are not a model, or a special token is missing or is not a control symbol.
    """

    kind = "SentencePiece"

    def __init__(self, model: bytes, *, do_lower_case: bool | None = None):
        """Create a tokenizer from the bytes of a .model file."""
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError, OSError):
            raise UserError("not a SentencePiece model: name a file written by sentencepiece") from None
        self._model = model
        self.pieces = tuple(self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size()))
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = map(
            self._control_id, (("<pad>", "[PAD]"), ("[CLS]",), ("[SEP]",), ("[MASK]",))
        )
        self.unk_id = self._processor.unk_id()
        ordinary = [
            not self._processor.is_control(i) and not self._processor.is_unknown(i) for i in range(self.vocab_size)
        ]
        if do_lower_case is None:
            do_lower_case = all(p == p.lower() for p, is_text in zip(self.pieces, ordinary, strict=True) if is_text)
        self.do_lower_case = do_lower_case
        self.strip_accents = False
        self.fingerprint = hashlib.sha256(f"do_lower_case={do_lower_case}\n".encode() + model).hexdigest()
        # The unknown piece is never a word start: at the start of a word sentencepiece puts a single "▁" before it.
        self.is_word_start = np.array(
            [p.startswith("▁") or self._processor.is_control(i) for i, p in enumerate(self.pieces)], bool
        )

    def _control_id(self, names: tuple[str, ...]) -> int:
        for name in names:
            piece_id = self._processor.piece_to_id(name)
            if self._processor.is_control(piece_id):
                return piece_id
        raise UserError(
            f"the SentencePiece model has no control symbol {' or '.join(names)}: train it with --pad_id=0 --unk_id=1 "
            "--bos_id=-1 --eos_id=-1 --control_symbols=[CLS],[SEP],[MASK]"
        )

    def __reduce__(self):
        """Pickle only the model and its casing."""
        return functools.partial(SentencePieceTokenizer, self._model, do_lower_case=self.do_lower_case), ()

    def _prepare(self, text: str) -> str:
        return _SURROGATE.sub("\ufffd", text.lower() if self.do_lower_case else text)

    def encode_batch_arrays(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of all texts as one array: the fastest method."""
        encoded = self._processor.encode([self._prepare(text) for text in texts], out_type=int, num_threads=1)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return EncodedBatch(np.fromiter(chain.from_iterable(encoded), self.ids_dtype, count=lengths.sum()), lengths)

    def encode_with_offsets(self, text: str) -> Encoding:
        """Return the ids of a text with their spans, without leading white space; a single "▁" has an empty span."""
        encoded = self._processor.encode(self._prepare(text), out_type="offset_mapping")
        sources = list(range(len(text) + 1))
        if self.do_lower_case:
            sources = [i for i, char in enumerate(text) for _ in char.lower()] + [len(text)]
        offsets = []
        for piece, (start, end) in zip(encoded["pieces"], encoded["offsets"], strict=True):
            first, last = sources[start], (sources[end - 1] + 1 if end > start else sources[start])
            first = last - len(text[first:last].lstrip())
            # sentencepiece gives the span of a ligature only to its last piece; the other pieces share the character.
            offsets.append((first, last + (first == last < len(text) and piece != "▁")))
        return Encoding(list(encoded["ids"]), offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control symbols appear by name."""
        return "".join(self.convert_ids_to_pieces(ids)).replace("▁", " ").strip()

    def save(self, directory: str | os.PathLike) -> None:
        """Write spiece.model and tokenizer_config.json."""
        settings = {"tokenizer_class": "AlbertTokenizer", "do_lower_case": self.do_lower_case, "keep_accents": True}
        write_whole(pathlib.Path(directory, MODEL_FILE), content=self._model)
        write_whole(pathlib.Path(directory, CONFIG_FILE), content=(json.dumps(settings, indent=2) + "\n").encode())


_SURROGATE = re.compile("[\ud800-\udfff]")  # a lone surrogate cannot be encoded in UTF-8


def load_tokenizer(path: str | os.PathLike, *, do_lower_case: bool | None = None) -> Tokenizer:
    """Load the tokenizer of a vocab.txt, a SentencePiece .model, or a directory that contains one of them.

    A directory without them may have a tokenizer.json of another kind of vocabulary (`fast_tokenizer.py`). Casing is
    determined as in `load_vocabulary`.

    Raises UserError naming the path if it contains neither or both, or the file is invalid.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(path.glob(VOCABULARY_FILE)) + sorted(path.glob("*.model"))
        if not files and is_fast(path):
            return _with_casing(load_fast_tokenizer(path), path=path, do_lower_case=do_lower_case)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or f"neither {VOCABULARY_FILE} nor a .model file"
            raise UserError(f"directory {path} contains {names}: name the tokenizer file to use")
        path = files[0]
    if path.suffix != ".model":
        return WordPieceTokenizer(load_vocabulary(path, do_lower_case=do_lower_case))
    casing = read_casing(path.parent / CONFIG_FILE, do_lower_case=do_lower_case)
    try:
        return SentencePieceTokenizer(read_limited(path, max_bytes=_MAX_MODEL_BYTES), do_lower_case=casing)
    except OSError as error:
        raise UserError(f"SentencePiece model {path} cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _with_casing(tokenizer: Tokenizer, *, path: pathlib.Path, do_lower_case: bool | None) -> Tokenizer:
    if do_lower_case not in (None, tokenizer.do_lower_case):
        raise UserError(
            f"{path}: its tokenizer.json says do_lower_case={tokenizer.do_lower_case}: set "
            f"config.data.do_lower_case={tokenizer.do_lower_case}"
        )
    return tokenizer
