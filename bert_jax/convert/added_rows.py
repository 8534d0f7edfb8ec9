"""New tokens for a fine-tuned model: kept whole in text, each with a new row of the embeddings."""

import dataclasses
from collections.abc import Callable, Sequence

from bert_jax.convert.embedding_rows import with_mean_rows
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.added_tokens import AddedToken
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.errors import UserError

_FLAG = "--add_tokens"


def with_added_tokens(
    source: PretrainedModel, *, tokens: Sequence[str], report: Callable[[str], None] = print
) -> PretrainedModel:
    """Return `source` with `tokens`, as HuggingFace's `add_tokens` and `resize_token_embeddings` add them.

    Their ids follow the vocabulary. A row of the embeddings is the mean over the tokens into which the text was split
    before. Tokens that the vocabulary has are kept whole from now on, with their id.

    Raises:
      UserError: if the vocabulary is not WordPiece, or a token is empty, repeated or one of BERT's special tokens.
    """
    tokenizer = source.require_tokenizer()
    if not isinstance(tokenizer, WordPieceTokenizer):
        raise UserError(
            f"{_FLAG}: {source.path} has a {tokenizer.kind} vocabulary: give a model with a WordPiece vocabulary"
        )
    vocabulary = tokenizer.vocabulary
    _check(tokens, special=[tokenizer.pieces[index] for index in _special_ids(tokenizer)])
    ids = {piece: index for index, piece in enumerate(vocabulary.all_pieces)}
    known = {token.content for token in vocabulary.added}
    added = list(vocabulary.added)
    new: dict[int, str] = {}
    for content in tokens:
        if content in known:
            continue
        index = ids.get(content, len(vocabulary.all_pieces) + len(new))
        added.append(AddedToken(id=index, content=content, normalized=False))
        if content not in ids:
            new[index] = content
    parts = tokenizer.encode_batch(list(new.values()))
    vocab_size = max(source.model.vocab_size, len(vocabulary.all_pieces) + len(new))
    extended = WordPieceTokenizer(dataclasses.replace(vocabulary, added=tuple(sorted(added, key=lambda t: t.id))))
    report(f"{_FLAG}: {len(new)} new tokens; vocab_size {source.model.vocab_size} -> {vocab_size}")
    return with_mean_rows(source, tokenizer=extended, vocab_size=vocab_size, new_ids=list(new), old_ids=parts)


def _special_ids(tokenizer: WordPieceTokenizer) -> list[int]:
    return [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]


def _check(tokens: Sequence[str], *, special: Sequence[str]) -> None:
    seen: set[str] = set()
    for token in tokens:
        problem = ""
        if not token.strip():
            problem = "it is empty"
        elif token != token.strip():
            problem = "it begins or ends with white space"
        elif token in special:
            problem = "it is one of BERT's special tokens, which are never read in text"
        elif token in seen:
            problem = "it is repeated"
        seen.add(token)
        if problem:
            raise UserError(f"{_FLAG}: token {token!r}: {problem}: remove it")
