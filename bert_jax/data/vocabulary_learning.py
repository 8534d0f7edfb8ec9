"""Learn word pieces from text: count words, let sentencepiece propose pieces by BPE, keep those that matching uses.

Words come out of the tokenizer's own rules, so that pieces never cross what the tokenizer cuts. BPE rather than the
unigram model: matched greedily, its pieces cut held-out English into fewer tokens at 4,096 and at 30,522 pieces,
and it learns them tens of times faster. sentencepiece proposes a quarter more pieces than wanted; those that greedy
matching uses least on the counted words are dropped, in rounds, because dropping one sends its words to others. Without
this one piece in nine of 30,522 would occur fewer than ten times in 65 MB of English: steps on BPE's way to longer
pieces, which training hardly sees.
"""

import io
import sys
from collections import Counter
from collections.abc import Iterable

import sentencepiece

from bert_jax.data.wordpiece import CONTROL_WHITE_SPACE, GreedyMatcher, basic_words, is_cjk, is_punctuation, segments
from bert_jax.errors import UserError

_SURPLUS = 1.25  # pieces proposed for each wanted; 1.5 gave no shorter text
_KEPT_A_ROUND = 0.93  # of the pieces; four rounds from 1.25 to 1
_LETTER_SHARE = 0.5  # of all pieces, at most, single letters; in 30,522 pieces of English it is under 1 %
_RAW_WORDS = 1 << 17  # distinct words between white space that are counted before they are cut into basic words
_MAX_WORD_CHARS = 200  # longer words are [UNK] to the tokenizer
_MAX_PIECE_CHARS = 24  # "##" not counted; sentencepiece's default of 16 holds no "##representatives"
_SENTENCEPIECE_SYMBOLS = "▁▅"  # U+2581 stands for the start of a word in sentencepiece, U+2585 for the unknown


def count_words(texts: Iterable[str], *, do_lower_case: bool, max_distinct_words: int) -> Counter[str]:
    """Count the basic words of texts; above `max_distinct_words` different ones the rarest quarter is forgotten."""
    words: Counter[str] = Counter()
    raw_words: Counter[str] = Counter()

    def fold():
        for raw_word, count in raw_words.items():
            for word in basic_words(raw_word, do_lower_case=do_lower_case):
                words[word] += count
        raw_words.clear()
        if len(words) > max_distinct_words:
            kept = _most_frequent(words, number=max_distinct_words * 3 // 4)
            words.clear()
            words.update(kept)

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
    """Return the most frequent entries, most frequent first, ties in code point order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number])


def choose_characters(
    words: dict[str, int], *, num_slots: int, coverage: float, letter_share: float = _LETTER_SHARE
) -> list[str]:
    """Choose the characters that become pieces, most frequent first, until `coverage` of the running text is covered.

    A letter takes two slots (`x` and `##x`), a character that is always a word of its own takes one. Letters get no
    more than `letter_share` of the slots: the rest is for pieces made of them.
    """
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    chosen: list[str] = []
    covered, letter_slots, free = 0, 0, num_slots
    wanted = coverage * sum(counts.values())
    for char, count in _most_frequent(counts, number=len(counts)).items():
        if covered >= wanted:
            break
        if "\ud800" <= char <= "\udfff":  # half a surrogate pair: no UTF-8 file can hold it
            continue
        slots = len(_forms(char))
        if slots > free or (slots == 2 and letter_slots + slots > num_slots * letter_share):
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
    """Return the words that pieces can help, most frequent first: any other is [UNK] whatever the pieces."""
    known = set(characters)
    return {
        word: count
        for word, count in _most_frequent(words, number=len(words)).items()
        if len(word) <= _MAX_WORD_CHARS and known.issuperset(word)
    }


def propose_pieces(
    words: dict[str, int], *, number: int, singles: list[str], num_threads: int = 1, model_type: str = "bpe"
) -> list[str]:
    """Let sentencepiece learn at least `number` pieces of several characters, as far as the words support them.

    They are named as WordPiece does: `▁x` is `x`, `x` is `##x`.
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
        # Its own count holds the unknown, "▁", and up to two pieces for each single character besides.
        vocab_size=number + 2 * len(singles) + 2,
        hard_vocab_limit=False,  # a text that supports fewer is our error to tell
        normalization_rule_name="identity",
        character_coverage=1.0,
        byte_fallback=False,
        split_by_number=False,  # "1990s", "19th"
        split_by_unicode_script=False,
        max_sentencepiece_length=_MAX_PIECE_CHARS + 1,  # with the mark of a word's start
        num_threads=num_threads,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    learned = [processor.id_to_piece(i) for i in range(processor.get_piece_size()) if not processor.is_unknown(i)]
    # Single characters are chosen by count and not here; sentencepiece would also have punctuation within words.
    return [
        piece[1:] if piece.startswith("▁") else f"##{piece}" for piece in learned if len(piece.removeprefix("▁")) > 1
    ]


def keep_most_used(proposed: list[str], *, number: int, singles: list[str], words: dict[str, int]) -> list[str]:
    """Drop the pieces that greedy matching uses least, in rounds, until `number` are left; most used first."""
    kept = list(proposed)
    while True:
        pieces = [*singles, *kept]
        uses = count_uses(pieces, words=words)
        kept.sort(key=lambda piece: (-uses[piece], piece))
        if len(kept) <= number:
            return kept
        del kept[max(number, int(len(kept) * _KEPT_A_ROUND)) :]


def count_uses(pieces: list[str], *, words: dict[str, int]) -> dict[str, int]:
    """Count how often greedy matching of the words uses each piece."""
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
    num_threads: int,
    character_coverage: float,
    max_distinct_words: int,
) -> tuple[str, ...]:
    """Learn exactly `num_pieces` pieces: single characters in code point order, then pieces by falling use.

    `num_reserved` is only for messages, which speak of the whole vocabulary.

    Raises UserError where the texts hold no word, or support fewer pieces.
    """
    counts = count_words(texts, do_lower_case=do_lower_case, max_distinct_words=max_distinct_words)
    if not counts:
        raise UserError("no vocabulary can be learned: the texts hold no word; give more text")
    for letter_share in (_LETTER_SHARE, 1.0):  # where half the slots is too few for pieces of a small text, all may go
        characters = choose_characters(
            counts, num_slots=num_pieces, coverage=character_coverage, letter_share=letter_share
        )
        singles = single_character_pieces(characters)
        words = known_words(counts, characters=characters)
        wanted = num_pieces - len(singles)
        proposed = propose_pieces(words, number=round(wanted * _SURPLUS), singles=singles, num_threads=num_threads)
        if characters and len(proposed) >= wanted:
            return (*singles, *keep_most_used(proposed, number=wanted, singles=singles, words=words))
    characters = choose_characters(counts, num_slots=sys.maxsize, coverage=character_coverage)
    singles = single_character_pieces(characters)
    words = known_words(counts, characters=characters)
    everything = propose_pieces(words, number=sum(map(len, words)), singles=singles, num_threads=num_threads)
    smallest, largest = num_reserved + len(singles), num_reserved + len(singles) + len(everything)
    if num_pieces + num_reserved > largest:
        raise UserError(
            f"vocab_size={num_pieces + num_reserved} is more than the text supports; give more text or "
            f"type vocab_size={largest}, the largest possible"
        )
    raise UserError(
        f"vocab_size={num_pieces + num_reserved} is too small for the characters of the text; "
        f"type vocab_size={smallest} or more, up to {largest}"
    )
