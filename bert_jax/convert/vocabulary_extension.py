"""Extension of a model's vocabulary: words go to unused slots first, then to new rows of the embeddings."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_jax.convert.embedding_rows import with_mean_rows
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer
from bert_jax.data.wordpiece import basic_words
from bert_jax.errors import UserError
from bert_jax.files import read_limited

_MAX_BYTES = 64 << 20  # of a list of words
_UNUSED = re.compile(r"\[unused\d+\]")


def extend_source(
    source: PretrainedModel, *, words: Sequence[str], report: Callable[[str], None] = print
) -> PretrainedModel:
    """Return `source` with `words` in its vocabulary. Words that it already has are skipped.

    The embedding and the masked-LM bias of a word are the means over the tokens into which the word was split before.

    Raises:
      UserError: if the vocabulary is not WordPiece, or an entry of `words` is not a single normalized word.
    """
    tokenizer = source.require_tokenizer()
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(
            f"{source.path}: cannot extend a {tokenizer.kind} vocabulary: give a model with a WordPiece vocabulary"
        )
    known = set(tokenizer.pieces)
    new = [word for word in dict.fromkeys(words) if word not in known]
    for word in new:
        _check_word(word, tokenizer)
    if not new:
        report("the vocabulary already has all these words")
        return source
    old_ids = tokenizer.encode_batch(new)
    pieces, added_ids = list(tokenizer.pieces), {token.id for token in tokenizer.vocabulary.added}
    unused = [index for index, piece in enumerate(pieces) if _UNUSED.fullmatch(piece) and index not in added_ids]
    new_ids = unused[: len(new)]
    new_ids += range(len(pieces), len(pieces) + len(new) - len(new_ids))
    pieces += [""] * (len(new) - len(unused))
    for index, word in zip(new_ids, new, strict=True):
        pieces[index] = word
    vocab_size = max(len(pieces), source.model.vocab_size)
    report(
        f"{len(new)} new words: {min(len(new), len(unused))} in unused slots, {max(0, len(new) - len(unused))} in new "
        f"rows; vocab_size {source.model.vocab_size} -> {vocab_size}"
    )
    # Added tokens get a line of vocab.txt like all others, because the new words have the ids after them.
    vocabulary = dataclasses.replace(tokenizer.vocabulary, pieces=tuple(pieces))
    extended = WordPieceTokenizer(vocabulary)
    return with_mean_rows(source, tokenizer=extended, vocab_size=vocab_size, new_ids=new_ids, old_ids=old_ids)


def _check_word(word: str, tokenizer: Tokenizer) -> None:
    if word.startswith("##") or _UNUSED.fullmatch(word):
        raise UserError(f"new word {word!r}: only whole words can be added: write the word as it appears in text")
    normalized = basic_words(word, do_lower_case=tokenizer.do_lower_case, strip_accents=tokenizer.strip_accents)
    if normalized != [word]:
        remedy = f"write {' and '.join(map(repr, normalized))}" if normalized else "remove it"
        raise UserError(f"new word {word[:60]!r}: the tokenizer never produces this word from text: {remedy}")


def read_words(file: str | Path) -> list[str]:
    """Return the words of a file with one word per line. Blank lines are skipped.

    Raises:
      UserError: if it cannot be read as text.
    """
    try:
        text = read_limited(file, max_bytes=_MAX_BYTES).decode("utf-8-sig")
        return [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot read a list of words ({error}): give a UTF-8 file with one word per line"
        ) from None
