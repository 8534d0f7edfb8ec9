"""Add words to a model's vocabulary: unused slots first, then new rows, begun as the mean of the old pieces."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer
from bert_jax.data.vocabulary import Vocabulary
from bert_jax.data.wordpiece import basic_words
from bert_jax.errors import UserError
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import flatten, nest

_UNUSED = re.compile(r"\[unused\d+\]")


def extend_source(
    source: PretrainedModel, *, words: Sequence[str], report: Callable[[str], None] = print
) -> PretrainedModel:
    """Return `source` with `words` in its vocabulary; words that it has already are passed over.

    Rows of the word embeddings and values of the masked-LM bias are the means over the pieces that each word was cut
    into.

    Raises:
      UserError: if the vocabulary is no WordPiece, or something is not one normalized word.
    """
    tokenizer = source.require_tokenizer()
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(f"{source.path}: has a SentencePiece vocabulary: only WordPiece vocabularies can be extended")
    known = set(tokenizer.pieces)
    new = [word for word in dict.fromkeys(words) if word not in known]
    for word in new:
        _check_word(word, tokenizer)
    if not new:
        report("the vocabulary has all these words already")
        return source
    old_ids = tokenizer.encode_batch(new)
    unused = [index for index, piece in enumerate(tokenizer.pieces) if _UNUSED.fullmatch(piece)]
    pieces = list(tokenizer.pieces)
    places = unused[: len(new)]
    places += range(len(pieces), len(pieces) + len(new) - len(places))
    pieces += [""] * (len(new) - len(unused))
    for place, word in zip(places, new, strict=True):
        pieces[place] = word
    vocab_size = max(len(pieces), source.model.vocab_size)
    report(
        f"{len(new)} new words: {min(len(new), len(unused))} in unused slots, {max(0, len(new) - len(unused))} in new "
        f"rows; "
        f"vocab_size {source.model.vocab_size} -> {vocab_size}"
    )
    flat = flatten(source.params)
    for entry in architecture_of(source.model).names.of(source.parts):
        if entry.axes[0] == "V":
            flat[entry.flax] = _extend(flat[entry.flax], vocab_size, places, old_ids)
    vocabulary = Vocabulary(tuple(pieces), do_lower_case=tokenizer.do_lower_case)
    return dataclasses.replace(
        source,
        params=nest(flat),
        model=dataclasses.replace(source.model, vocab_size=vocab_size),
        tokenizer=WordPieceTokenizer(vocabulary),
    )


def _extend(rows: np.ndarray, size: int, places: Sequence[int], old_ids: Sequence[Sequence[int]]) -> np.ndarray:
    extended = np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
    for place, ids in zip(places, old_ids, strict=True):
        extended[place] = rows[list(ids)].mean(0)
    return extended


def _check_word(word: str, tokenizer: Tokenizer) -> None:
    if word.startswith("##") or _UNUSED.fullmatch(word):
        raise UserError(f"new word {word!r}: only whole words can be added: write the word as it stands in text")
    normalized = basic_words(word, do_lower_case=tokenizer.do_lower_case)
    if normalized != [word]:
        spelling = f"write {' and '.join(map(repr, normalized))}" if normalized else "leave it out"
        raise UserError(f"new word {word[:60]!r}: the tokenizer would never see it so: {spelling}")


def read_words(file: str | Path) -> list[str]:
    """Return the words of a file, one a line; blank lines are passed over.

    Raises:
      UserError: if it cannot be read as text.
    """
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as a list of words ({error}): name a UTF-8 file, a word a line"
        ) from None
