"""The interface of tokenizers: text to ids and back."""

import abc
import dataclasses
import functools
import os
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from bert_jax.rows.special_ids import SpecialIds

MASK = "[MASK]"  # how a masked token is written in texts for prediction


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The ids of a text, each with its half-open span of characters in the original text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class EncodedBatch:
    """The concatenated ids of several texts: `ids` uint16 or int32 [N], `lengths` int64 [B] with sum N."""

    ids: np.ndarray
    lengths: np.ndarray


class Tokenizer(abc.ABC):
    """Conversion of text to ids and back. No method adds BERT's special tokens or recognizes them in text."""

    do_lower_case: bool
    strip_accents: bool  # removes non-spacing marks
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    fingerprint: str  # SHA-256 in hexadecimal: equal if ids mean the same
    is_word_start: np.ndarray  # bool [V]: False for pieces inside a word
    pieces: tuple[str, ...]  # ordered by id
    kind: str  # of vocabulary: WordPiece, SentencePiece, BPE, ...

    @property
    def vocab_size(self) -> int:
        """Return the number of pieces."""
        return len(self.pieces)

    @functools.cached_property
    def special_ids(self) -> SpecialIds:
        """Return the special ids of this tokenizer."""
        return SpecialIds(
            cls_id=self.cls_id,
            sep_id=self.sep_id,
            mask_id=self.mask_id,
            pad_id=self.pad_id,
            vocab_size=self.vocab_size,
        )

    @property
    def ids_dtype(self) -> type:
        """Return the smallest type that holds every id: uint16, or int32 for 65,536 pieces or more."""
        return np.uint16 if self.vocab_size < 1 << 16 else np.int32

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self.encode_batch_arrays([text]).ids.tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        batch = self.encode_batch_arrays(texts)
        ids = batch.ids.tolist()
        return [ids[start:end] for start, end in pairwise(accumulate(batch.lengths.tolist(), initial=0))]

    @abc.abstractmethod
    def encode_batch_arrays(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of all texts as one array: the fastest method."""

    def encode_sentences(self, sentences: Sequence[str]) -> EncodedBatch:
        """Return the ids of the sentences of one document, in order."""
        return self.encode_batch_arrays(sentences)

    def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ids of each word of texts that are already split into words."""
        return self.encode_batch(words)

    def split_at_masks(self, text: str) -> list[str]:
        """Return the texts before, between and after the mask tokens of a text."""
        return text.split(MASK)

    @abc.abstractmethod
    def encode_with_offsets(self, text: str) -> Encoding:
        """Return the ids of a text with their spans."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, up to the information that ids lose; special tokens appear by name."""

    @abc.abstractmethod
    def save(self, directory: str | os.PathLike) -> None:
        """Write the files from which `load_tokenizer(directory)` restores this tokenizer."""

    def convert_ids_to_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id."""
        return [self.pieces[piece_id] for piece_id in ids]
