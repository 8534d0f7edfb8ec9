"""Learn word pieces from text: count words, propose pieces with sentencepiece's BPE, keep the most used.

Words come from the tokenizer's own rules, so pieces never cross its splits. BPE instead of the unigram model: with
greedy matching, its pieces split held-out English into fewer tokens at 4,096 and at 30,522 pieces, and learning is tens
of times faster. sentencepiece proposes 25 % more pieces than necessary. Those that greedy matching uses least on the
counted words are dropped, in rounds, because dropping a piece increases the use of others. Without this, one in nine of
30,522 pieces would occur fewer than ten times in 65 MB of English: intermediate merges of BPE that training hardly
sees.
"""

import io
import sys
from collections import Counter
from collections.abc import Iterable

import sentencepiece

from bert_jax.data.wordpiece import CONTROL_WHITE_SPACE, GreedyMatcher, basic_words, is_cjk, is_punctuation, segments
from bert_jax.errors import UserError

_SURPLUS = 1.25  # proposed pieces per final piece; 1.5 did not shorten the text further
_KEPT_PER_ROUND = 0.93  # fraction of the pieces; four rounds from 1.25 to 1
_MAX_LETTER_FRACTION = 0.5  # of all pieces may be single letters; in 30,522 pieces of English under 1 % are
_RAW_WORDS = 1 << 17  # distinct white-space words counted before they are split into basic words
_MAX_WORD_CHARS = 200  # the tokenizer maps longer words to [UNK]
_MANY_LONG = 0.05  # fraction of the characters in such words that an error mentions
_MAX_PIECE_CHARS = 24  # without "##"; sentencepiece's default of 16 excludes "##representatives"
_SENTENCEPIECE_SYMBOLS = "▁▅"  # in sentencepiece, U+2581 marks the start of a word, U+2585 the unknown


def count_words(
    texts: Iterable[str], *, do_lower_case: bool, strip_accents: bool | None = None, max_distinct_words: int
) -> Counter[str]:
    """Count the basic words of texts; above `max_distinct_words` distinct words, drop the rarest quarter."""
    words: Counter[str] = Counter()
    raw_words: Counter[str] = Counter()

    def fold():
        for raw_word, count in raw_words.items():
            for word in basic_words(raw_word, do_lower_case=do_lower_case, strip_accents=strip_accents):
                words[word] += count
        raw_words.clear()
        if len(words) > max_distinct_words:
            frequent = _most_frequent(words, number=max_distinct_words * 3 // 4)
            words.clear()
            words.update(frequent)

    drop_controls = str.maketrans("", "", CONTROL_WHITE_SPACE)
    for text in texts:
        for segment in segments(text):
            if any(control in segment for control in CONTROL_WHITE_SPACE):
                segment = segment.translate(drop_controls)
            raw_words.update(segment.split())
            if len(raw_words) >= min(_RAW_WORDS, max_distinct_words):
                fold()
    fold()
    return words


def _most_frequent(counts: dict[str, int], *, number: int) -> dict[str, int]:
    """Return the most frequent entries in descending order, ties in code point order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number])


def choose_characters(
    words: dict[str, int], *, num_slots: int, coverage: float, max_letter_fraction: float = _MAX_LETTER_FRACTION
) -> list[str]:
    """Return the characters that become pieces, most frequent first, until they cover `coverage` of the text.

    A letter takes two slots (`x` and `##x`), a character that is always a separate word takes one. Letters get at most
    `max_letter_fraction` of the slots: the rest is for longer pieces.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    chosen: list[str] = []
    covered, letter_slots, free = 0, 0, num_slots
    target = coverage * sum(counts.values())
    for char, count in _most_frequent(counts, number=len(counts)).items():
        if covered >= target:
            break
        if "\ud800" <= char <= "\udfff":  # a lone surrogate cannot be encoded in UTF-8
            continue
        slots = len(_forms(char))
        if slots > free or (slots == 2 and letter_slots + slots > num_slots * max_letter_fraction):
            continue
        chosen.append(char)
        covered += count
        free -= slots
        letter_slots += slots if slots == 2 else 0
    return chosen


def _forms(char: str) -> list[str]:
    return [char] if is_punctuation(char) or is_cjk(char) else [char, f"##{char}"]


def single_character_pieces(characters: Iterable[str]) -> list[str]:
    """Return the pieces of one character, in code point order."""
    return [form for char in sorted(characters) for form in _forms(char)]


def known_words(words: dict[str, int], *, characters: Iterable[str]) -> dict[str, int]:
    """Return the words made of `characters`, most frequent first; all others are [UNK] for any vocabulary."""
    known = set(characters)
    return {
        word: count
        for word, count in _most_frequent(words, number=len(words)).items()
        if len(word) <= _MAX_WORD_CHARS and known.issuperset(word)
    }


def propose_pieces(
    words: dict[str, int], *, number: int, singles: list[str], num_threads: int = 1, model_type: str = "bpe"
) -> list[str]:
    """Return at least `number` multi-character pieces learned by sentencepiece, as far as the words support them.

    Names follow WordPiece: `▁x` becomes `x`, `x` becomes `##x`.
    """
    lines = [f"{word}\t{count}" for word, count in words.items() if not any(c in word for c in _SENTENCEPIECE_SYMBOLS)]
    if not lines or number <= 0:
        return []
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        input_format="tsv",
        model_writer=model,
        model_type=model_type,
        # sentencepiece's count includes the unknown, "▁", and up to two pieces per single character.
        vocab_size=number + 2 * len(singles) + 2,
        hard_vocab_limit=False,  # learn_pieces reports a text that supports fewer
        normalization_rule_name="identity",
        character_coverage=1.0,
        byte_fallback=False,
        split_by_number=False,  # "1990s", "19th"
        split_by_unicode_script=False,
        max_sentencepiece_length=_MAX_PIECE_CHARS + 1,  # with the word-start mark
        num_threads=num_threads,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    learned = [processor.id_to_piece(i) for i in range(processor.get_piece_size()) if not processor.is_unknown(i)]
    # Single characters are chosen by count instead; sentencepiece would also allow punctuation inside words.
    return [
        piece[1:] if piece.startswith("▁") else f"##{piece}" for piece in learned if len(piece.removeprefix("▁")) > 1
    ]


def keep_most_used(proposed: list[str], *, number: int, singles: list[str], words: dict[str, int]) -> list[str]:
    """Return the `number` pieces that greedy matching uses most, most used first; the others are dropped in rounds."""
    candidates = list(proposed)
    while True:
        pieces = [*singles, *candidates]
        uses = count_uses(pieces, words=words)
        candidates.sort(key=lambda piece: (-uses[piece], piece))
        if len(candidates) <= number:
            return candidates
        del candidates[max(number, int(len(candidates) * _KEPT_PER_ROUND)) :]


def count_uses(pieces: list[str], *, words: dict[str, int]) -> dict[str, int]:
    """Return how often greedy matching of the words uses each piece."""
    matcher = GreedyMatcher(pieces)
    used = [0] * len(pieces)
    for word, count in words.items():
        for piece_id in matcher.match(word) or ():
            used[piece_id] += count
    return dict(zip(pieces, used, strict=True))


def learn_pieces(
    texts: Iterable[str],
    *,
    num_pieces: int,
    num_reserved: int,
    do_lower_case: bool,
    strip_accents: bool | None = None,
    num_threads: int,
    character_coverage: float,
    max_distinct_words: int,
) -> tuple[str, ...]:
    """Return exactly `num_pieces` pieces: single characters in code point order, then longer pieces by descending use.

    `num_reserved` is only for messages, which give the size of the whole vocabulary.

    Raises UserError if the texts contain no word or support fewer pieces.
    """
    counts = count_words(
        texts, do_lower_case=do_lower_case, strip_accents=strip_accents, max_distinct_words=max_distinct_words
    )
    if not counts:
        raise UserError("cannot learn a vocabulary: the texts contain no word; give more text")
    for fraction in (_MAX_LETTER_FRACTION, 1.0):  # a small text may need more letters than half the slots
        characters = choose_characters(
            counts, num_slots=num_pieces, coverage=character_coverage, max_letter_fraction=fraction
        )
        singles = single_character_pieces(characters)
        words = known_words(counts, characters=characters)
        number = num_pieces - len(singles)
        proposed = propose_pieces(words, number=round(number * _SURPLUS), singles=singles, num_threads=num_threads)
        if characters and len(proposed) >= number:
            return (*singles, *keep_most_used(proposed, number=number, singles=singles, words=words))
    characters = choose_characters(counts, num_slots=sys.maxsize, coverage=character_coverage)
    singles = single_character_pieces(characters)
    words = known_words(counts, characters=characters)
    everything = propose_pieces(words, number=sum(map(len, words)), singles=singles, num_threads=num_threads)
    smallest, largest = num_reserved + len(singles), num_reserved + len(singles) + len(everything)
    if num_pieces + num_reserved > largest:
        raise UserError(
            f"a vocabulary of {num_pieces + num_reserved} tokens is more than the text supports{_long_words(counts)}: "
            f"give more text, or type --config.model.vocab_size={largest}, the largest possible"
        )
    raise UserError(
        f"a vocabulary of {num_pieces + num_reserved} tokens is too small for the characters of the text: type "
        f"--config.model.vocab_size={smallest} or more, up to {largest}"
    )


def _long_words(counts: dict[str, int]) -> str:
    """Return the reason for a small vocabulary if many characters are in words over the limit, else ""."""
    total = sum(len(word) * count for word, count in counts.items())
    overlong = sum(len(word) * count for word, count in counts.items() if len(word) > _MAX_WORD_CHARS)
    if overlong <= _MANY_LONG * total:
        return ""
    return (
        f", because {overlong / total:.0%} of its characters are in words of more than {_MAX_WORD_CHARS} characters, "
        "which are read as [UNK]; put spaces between words (a word segmenter for Thai, k-mers for DNA)"
    )
