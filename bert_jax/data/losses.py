"""How much of a text is lost, measured on a sample: unknown words, stripped accents, words over the limit, copies."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable

from bert_jax.data.accents import is_mark
from bert_jax.data.intermediate import StoredDocument
from bert_jax.data.sentences import document_sentences
from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer
from bert_jax.data.wordpiece import basic_words
from bert_jax.errors import UserError

SAMPLE_CHARS = 1 << 20
TRACE = 0.01  # above this fraction, a loss is a warning
MOST = 0.5  # above this fraction, it is an error
_MANY_STRIPPED = 0.03  # of the characters; French has 0.03, Vietnamese 0.2
_MANY_SHORT = 0.05  # of the documents
_MANY_COPIES, _MOST_COPIES = 0.05, 0.9  # of the text; a small corpus may be there several times on purpose
_ALL = 0.99


@dataclasses.dataclass
class Losses:
    """Counts of a sample; characters are those that are not white space."""

    characters: int = 0
    unknown: int = 0  # characters of words that become [UNK]
    overlong: int = 0  # of them, characters of words over the tokenizer's limit
    stripped: int = 0  # accents and other marks that are removed
    documents: int = 0
    one_sentence: int = 0  # documents of one sentence
    one_sentence_characters: int = 0
    copied_characters: int = 0  # of documents that are copies of earlier ones
    limit: int = 0  # most characters of a word; 0: none

    def describe(self) -> str:
        """Return the fractions as a log line."""
        parts = [f"{_percent(self.unknown, self.characters)} lost to [UNK]"]
        if self.limit:
            parts.append(f"{_percent(self.overlong, self.characters)} in words over {self.limit} characters")
        parts.append(f"{_percent(self.stripped, self.characters)} accents stripped")
        parts.append(f"{_percent(self.copied_characters, self.characters)} in copies of documents")
        short = _percent(self.one_sentence, self.documents)
        return f"characters: {', '.join(parts)}; {short} of the documents have one sentence (sample)"


def measure(documents: Iterable[StoredDocument], *, tokenizer: Tokenizer, language: str) -> Losses:
    """Return the losses of the first `SAMPLE_CHARS` characters of the documents."""
    losses = Losses(limit=tokenizer.max_input_chars_per_word if isinstance(tokenizer, WordPieceTokenizer) else 0)
    seen: set[int] = set()
    for document in documents:
        if losses.characters >= SAMPLE_CHARS:
            break
        text = hash("\n".join(document.texts))
        sentences = document_sentences(document.texts, is_split=document.is_split, language=language)
        losses.documents += 1
        before = losses.characters
        _add(losses, sentences, tokenizer)
        losses.copied_characters += (text in seen) * (losses.characters - before)
        seen.add(text)
        if len(sentences) == 1:
            losses.one_sentence += 1
            losses.one_sentence_characters += losses.characters - before
    return losses


def _add(losses: Losses, sentences: list[str], tokenizer: Tokenizer) -> None:
    for text, ids in zip(sentences, tokenizer.encode_batch(sentences), strict=True):
        losses.characters += sum(map(len, text.split()))
        if tokenizer.unk_id in ids:
            encoding = tokenizer.encode_with_offsets(text)
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            losses.unknown += sum(end - start for id, (start, end) in spans if id == tokenizer.unk_id)
            if losses.limit:
                losses.overlong += overlong_characters(text, limit=losses.limit)
        if tokenizer.strip_accents and not text.isascii():
            losses.stripped += sum(map(is_mark, unicodedata.normalize("NFD", text)))


def overlong_characters(text: str, *, limit: int) -> int:
    """Return the number of characters of words that are longer than `limit`."""
    candidates = re.findall(rf"\S{{{limit + 1},}}", text)
    words = (word for candidate in candidates for word in basic_words(candidate, do_lower_case=False))
    return sum(len(word) for word in words if len(word) > limit)


def check(losses: Losses, *, objective: str, is_learned: bool) -> list[str]:
    """Return a warning for each loss above a trace.

    Raises:
      UserError: if most characters are lost or in copies, or every pair of sentences would be a random one.
    """
    warnings = [
        *_unknown(losses, is_learned=is_learned),
        *_stripped(losses),
        *_copied(losses),
        *check_one_sentence(
            losses.one_sentence,
            losses.documents,
            share_of_text=_fraction(losses.one_sentence_characters, losses.characters),
            objective=objective,
        ),
    ]
    return [f"warning: {text}" for text in warnings]


def _unknown(losses: Losses, *, is_learned: bool) -> list[str]:
    share = _fraction(losses.unknown, losses.characters)
    if share <= TRACE:
        return []
    text = f"{_percent(losses.unknown, losses.characters)} of the characters are lost to [UNK]"
    if losses.overlong > losses.unknown / 2:
        text += (
            f", most of them in words over {losses.limit} characters: put spaces between words (a word segmenter for "
            "Thai, k-mers for DNA), or give a SentencePiece model as --config.data.vocab"
        )
    else:
        learn = "" if is_learned else "leave --config.data.vocab empty to learn one from this text, and "
        text += f": the vocabulary lacks their letters: {learn}raise --config.model.vocab_size"
    if share > MOST:
        raise UserError(text)
    return [text]


def _stripped(losses: Losses) -> list[str]:
    if _fraction(losses.stripped, losses.characters) <= _MANY_STRIPPED:
        return []
    return [
        f"accents and marks are stripped, {_percent(losses.stripped, losses.characters)} of the characters: set "
        "--config.data.strip_accents=no to keep them"
    ]


def _copied(losses: Losses) -> list[str]:
    share = _fraction(losses.copied_characters, losses.characters)
    if share <= _MANY_COPIES:
        return []
    text = (
        f"{_percent(losses.copied_characters, losses.characters)} of the text are copies of other documents, which a "
        "model memorizes and which make held-out text known: remove them; to read a text more often set "
        "--config.train.num_epochs"
    )
    if share > _MOST_COPIES:
        raise UserError(text)
    return [text]


def check_one_sentence(number: int, documents: int, *, share_of_text: float, objective: str) -> list[str]:
    """Return a warning if more than a few documents have one sentence, which next-sentence prediction cannot use.

    Raises:
      UserError: if `share_of_text`, the fraction of the text that these documents hold, is nearly all.
    """
    share = _fraction(number, documents)
    if objective == "mlm" or share <= _MANY_SHORT:
        return []
    percent = _percent(number, documents)
    if objective == "mlm+nsp":
        text = f"{percent} of the documents have one sentence, so their next sentence is always a random one"
    else:
        text = f"{percent} of the documents have one sentence, which makes no pair"
    advice = (
        "for short texts such as reviews, or short and long ones mixed, set --config.data.objective=mlm; if lines are "
        "parts of longer documents, say where these end with --config.data.documents"
    )
    if share_of_text > _ALL:
        raise UserError(f"{text}: {advice}")
    return [f"{text}: {advice}"]


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{_fraction(part, whole):.2%}"
