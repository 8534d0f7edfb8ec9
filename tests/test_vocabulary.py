"""Vocabularies are read as they are, written whole, and learned the same every time."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from bert_jax.data import vocabulary as vocabulary_module
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary, learn_vocabulary, load_vocabulary, save_vocabulary
from bert_jax.data.vocabulary_learning import (
    choose_characters,
    count_uses,
    count_words,
    keep_most_used,
    known_words,
    propose_pieces,
    single_character_pieces,
)
from bert_jax.data.wordpiece import GreedyMatcher, basic_words
from bert_jax.errors import UserError

SPECIAL_LINES = "".join(f"{piece}\n" for piece in SPECIAL_PIECES)
RELEASED = {
    "uncased": (30522, True),
    "cased": (28996, False),
    "chinese": (21128, True),
    "multilingual-cased": (119547, False),
}
TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Foxes jump; dogs dream of jumping foxes. Was it in 1990, or in the 1980s?",
    "A naïve café owner's résumé: 中文 and 한국어, Ελλάδα.",
] * 3


# --- Files ---


@pytest.mark.parametrize("name", RELEASED)
def test_released_vocabularies_load_and_save_as_they_are(shared_data: Path, tmp_path: Path, name: str):
    file = shared_data / "vocab" / f"bert-base-{name}-vocab.txt"
    vocabulary = load_vocabulary(file)
    assert (vocabulary.size, vocabulary.do_lower_case) == RELEASED[name]
    assert vocabulary.is_word_start.sum() == sum(not line.startswith(b"##") for line in file.read_bytes().splitlines())
    save_vocabulary(vocabulary, directory=tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "vocab.txt").read_bytes() == file.read_bytes()
    assert load_vocabulary(tmp_path / "new" / "folder") == vocabulary


def test_special_pieces_have_the_ids_of_their_lines(shared_data: Path):
    vocabulary = load_vocabulary(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    ids = [vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id]
    assert ids == [0, 100, 101, 102, 103]  # as released


def test_a_fingerprint_tells_pieces_order_casing_and_the_word_limit():
    base = Vocabulary((*SPECIAL_PIECES, "a", "b"), do_lower_case=True)
    others = [
        Vocabulary((*SPECIAL_PIECES, "b", "a"), do_lower_case=True),
        Vocabulary((*SPECIAL_PIECES, "a", "b"), do_lower_case=False),
        Vocabulary((*SPECIAL_PIECES, "ab"), do_lower_case=True),
        Vocabulary((*SPECIAL_PIECES, "a", "b", "c"), do_lower_case=True),
        Vocabulary((*SPECIAL_PIECES, "a", "b"), do_lower_case=True, max_input_chars_per_word=100),
    ]
    fingerprints = {vocabulary.fingerprint for vocabulary in [base, *others]}
    assert len(fingerprints) == 6
    assert all(len(fingerprint) == 64 for fingerprint in fingerprints)
    assert Vocabulary((*SPECIAL_PIECES, "a", "b"), do_lower_case=True).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not UTF-8"),
        (SPECIAL_LINES.encode() + b"a\0b\n", "binary"),
        (b"[PAD]\n[UNK]\na\n", r"[CLS] [SEP] [MASK] are missing"),
        (SPECIAL_LINES.encode() + b"a\nb\na\n", "'a' occurs twice, in lines 6 and 8"),
        (SPECIAL_LINES.encode() + b"a\n\nb\n", "line 7 of 8 is blank"),
        (SPECIAL_LINES.encode() + b"a\n\n", "line 7 of 7 is blank"),
    ],
)
def test_a_bad_vocabulary_file_is_named_in_one_line(tmp_path: Path, content: bytes, complaint: str):
    file = tmp_path / "vocab.txt"
    file.write_bytes(content)
    for path in (file, tmp_path):
        with pytest.raises(UserError) as caught:
            load_vocabulary(path)
        message = str(caught.value)
        assert str(file) in message
        assert complaint in message
        assert "\n" not in message


def test_a_vocabulary_that_is_not_there_is_named(tmp_path: Path):
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(UserError, match=r"does not exist: name a vocab\.txt or a directory that contains one"):
            load_vocabulary(path)


def test_line_ends_byte_order_mark_and_spaces_are_not_part_of_pieces(tmp_path: Path):
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + SPECIAL_LINES.replace("\n", "\r\n").encode() + b"a \n##b")
    assert load_vocabulary(tmp_path).pieces == (*SPECIAL_PIECES, "a", "##b")


@pytest.mark.parametrize(
    ("setting", "argument", "piece", "expected"),
    [
        (True, None, "A", True),
        (False, None, "a", False),
        (True, True, "A", True),
        (None, True, "A", True),
        (None, False, "a", False),
        (None, None, "a", True),
        (None, None, "##bA", False),
        (None, None, "<S>", True),  # special: the released Chinese vocabulary has it
    ],
)
def test_casing_comes_from_file_then_argument_then_pieces(
    tmp_path: Path, setting: bool | None, argument: bool | None, piece: str, expected: bool
):
    (tmp_path / "vocab.txt").write_text(SPECIAL_LINES + f"x\n{piece}\n")
    if setting is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": setting}))
    assert load_vocabulary(tmp_path, do_lower_case=argument).do_lower_case is expected
    assert load_vocabulary(tmp_path / "vocab.txt", do_lower_case=argument).do_lower_case is expected


@pytest.mark.parametrize(
    ("config", "argument", "complaint"),
    [
        (
            '{"do_lower_case": true}',
            False,
            r"do_lower_case=False is set, but \S*tokenizer_config.json says True",
        ),
        (
            '{"do_lower_case": false}',
            True,
            r"do_lower_case=True is set, but \S*tokenizer_config.json says False",
        ),
        ('{"do_lower_case": "yes"}', None, r"tokenizer_config.json: do_lower_case is 'yes': write true or false"),
        ("{", None, r"tokenizer_config.json cannot be read as JSON"),
        ("[]", None, r"tokenizer_config.json must contain a JSON object"),
        ('{"strip_accents": "yes"}', None, r"tokenizer_config.json: strip_accents is 'yes': write true, false or null"),
        ('{"tokenize_chinese_chars": false}', None, r"tokenize_chinese_chars=False is not supported"),
    ],
)
def test_a_casing_that_cannot_be_honoured_is_an_error(
    tmp_path: Path, config: str, argument: bool | None, complaint: str
):
    (tmp_path / "vocab.txt").write_text(SPECIAL_LINES)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UserError, match=complaint):
        load_vocabulary(tmp_path, do_lower_case=argument)


def test_a_failed_save_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old = Vocabulary((*SPECIAL_PIECES, "old"), do_lower_case=True)
    save_vocabulary(old, directory=tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vocabulary_module.pathlib.Path, "replace", full)
    with pytest.raises(UserError, match=r"vocab\.txt cannot be written: No space left on device"):
        save_vocabulary(Vocabulary((*SPECIAL_PIECES, "new"), do_lower_case=True), directory=tmp_path)
    assert load_vocabulary(tmp_path) == old
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer_config.json", "vocab.txt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/folder/vocab\.txt cannot be written"):
        save_vocabulary(Vocabulary(SPECIAL_PIECES, do_lower_case=True), directory=tmp_path / "file" / "folder")


# --- Learning ---

LEARN = """
import hashlib, sys
from bert_jax.data.vocabulary import learn_vocabulary
from pydoc_data.topics import topics
texts = list(topics.values())[:40]
print(learn_vocabulary(texts, vocab_size=1500, do_lower_case=True, num_threads=int(sys.argv[1])).fingerprint)
"""


def test_the_same_text_gives_the_same_pieces_in_any_process():
    root = Path(__file__).resolve().parents[1]
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", LEARN, threads],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "1"), ("3", "2"))
    }
    assert len(fingerprints) == 1
    assert len(fingerprints.pop().strip()) == 64


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("vocab_size", [100, 101, 150, 200])
def test_a_learned_vocabulary_has_exactly_the_size_asked_for(vocab_size: int, do_lower_case: bool):
    vocabulary = learn_vocabulary(TEXTS, vocab_size=vocab_size, do_lower_case=do_lower_case)
    assert vocabulary.size == vocab_size
    assert vocabulary.pieces[:5] == SPECIAL_PIECES
    assert vocabulary.do_lower_case == do_lower_case
    if vocab_size >= 150:  # room for capitals
        assert any(char.isupper() for piece in vocabulary.pieces[5:] for char in piece) != do_lower_case


def test_unused_slots_follow_the_special_pieces():
    vocabulary = learn_vocabulary(TEXTS, vocab_size=150, do_lower_case=True, num_unused=3)
    assert vocabulary.size == 150
    assert vocabulary.pieces[:8] == (*SPECIAL_PIECES, "[unused0]", "[unused1]", "[unused2]")
    assert "[unused" not in " ".join(vocabulary.pieces[8:])


@pytest.mark.parametrize(
    ("texts", "low"), [(TEXTS, True), (["a b c", "hello hello world"], True), (["x ▁a ▁▁ ▅y"], False)]
)
def test_a_size_the_text_does_not_support_is_refused_with_the_largest_that_it_does(texts: list[str], low: bool):
    with pytest.raises(UserError, match=r"a vocabulary of 9999 tokens is more than the text supports") as caught:
        learn_vocabulary(texts, vocab_size=9999, do_lower_case=low)
    largest = int(str(caught.value).split("type --config.model.vocab_size=")[1].split(",")[0])
    assert learn_vocabulary(texts, vocab_size=largest, do_lower_case=low).size == largest
    with pytest.raises(UserError, match=rf"type --config\.model\.vocab_size={largest}, the largest possible"):
        learn_vocabulary(texts, vocab_size=largest + 1, do_lower_case=low)


def test_a_size_with_no_room_for_letters_is_refused_with_one_that_works():
    for too_small in (-1, 0, 4, 5, 6, 8, 10):
        with pytest.raises(UserError, match=r"too small for the characters of the text") as caught:
            learn_vocabulary(["a b c", "hello hello world"], vocab_size=too_small, do_lower_case=True)
    size = int(str(caught.value).split("type --config.model.vocab_size=")[1].split()[0])
    assert learn_vocabulary(["a b c", "hello hello world"], vocab_size=size, do_lower_case=True).size == size


@pytest.mark.parametrize("texts", [[], [""], ["\0 \u200b", "\n"]])
def test_text_with_no_word_is_refused(texts: list[str]):
    with pytest.raises(UserError, match="the texts contain no word"):
        learn_vocabulary(texts, vocab_size=100, do_lower_case=True)


def test_every_frequent_character_is_a_piece_at_the_start_and_within_words():
    vocabulary = learn_vocabulary(TEXTS, vocab_size=200, do_lower_case=True)
    pieces = set(vocabulary.pieces)
    chars = {char for text in TEXTS for word in basic_words(text, do_lower_case=True) for char in word}
    for char in chars:
        assert char in pieces
        # A character that is always a word of its own needs no form within words.
        assert (f"##{char}" in pieces) == (char.isalnum() and char not in "中文")
    tokenizer = WordPieceTokenizer(vocabulary)
    assert tokenizer.unk_id not in tokenizer.encode(" ".join(TEXTS))
    assert tokenizer.unk_id not in tokenizer.encode("xylophone 0189 gnu")  # words never seen, of letters seen


def test_rare_characters_are_left_out_by_coverage():
    texts = ["abcd " * 1000, "qabc"]
    full = learn_vocabulary(texts, vocab_size=20, do_lower_case=True, character_coverage=1.0)
    most = learn_vocabulary(texts, vocab_size=18, do_lower_case=True, character_coverage=0.99)
    assert {"q", "##q"} <= set(full.pieces)
    assert not any("q" in piece for piece in most.pieces)


def test_letters_leave_half_the_slots_to_longer_pieces():
    counts = {chr(i): 1000 - i for i in range(ord("a"), ord("z") + 1)}
    chosen = choose_characters(counts, num_slots=40, coverage=1.0)
    assert chosen == list("abcdefghij")  # 20 slots
    assert choose_characters({**counts, "中": 1, "!": 1}, num_slots=40, coverage=1.0) == [*"abcdefghij", "!", "中"]


def test_words_are_counted_as_the_tokenizer_cuts_them():
    texts = ["Don't stop!\x1c\x85now", "don't", "中文 İ", "x" * 300]
    counts = count_words(iter(texts), do_lower_case=True, max_distinct_words=100)
    assert counts == Counter(word for text in texts for word in basic_words(text, do_lower_case=True))
    assert counts["don"] == 2


def test_memory_is_bounded_by_distinct_words_and_frequent_words_survive():
    def texts(documents: int):
        for i in range(documents):
            yield f"common word {' '.join(f'rare{i}x{j}' for j in range(500))}"

    def peak(documents: int) -> int:
        tracemalloc.start()
        counts = count_words(texts(documents), do_lower_case=True, max_distinct_words=5_000)
        assert len(counts) <= 5_000
        assert (counts["common"], counts["word"]) == (documents, documents)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(160) < 1.1 * peak(40)


def tokens_per_word(pieces: tuple[str, ...] | list[str], words: dict[str, int]) -> float:
    matcher = GreedyMatcher(pieces)
    return sum(count * len(matcher.match(word) or [0]) for word, count in words.items()) / sum(words.values())


@pytest.fixture(scope="module")
def wikipedia(shared_data: Path) -> tuple[list[str], Counter[str]]:
    """Return text to learn from and the words of text held out."""
    texts = [(shared_data / "pretrain_en" / f"wiki_0{i}").read_text(encoding="utf-8") for i in range(4)]
    return texts[:3], count_words(texts[3:], do_lower_case=True, max_distinct_words=1_000_000)


def test_a_learned_vocabulary_cuts_text_never_seen_nearly_as_short_as_the_released_one(
    shared_data: Path, wikipedia: tuple[list[str], Counter[str]]
):
    texts, held_out = wikipedia
    learned = learn_vocabulary(texts, vocab_size=30522, do_lower_case=True)
    released = load_vocabulary(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    seen = count_words(texts, do_lower_case=True, max_distinct_words=1_000_000)
    # The released one was learned from a thousand times as much text.
    assert tokens_per_word(learned.pieces, held_out) < 1.15 * tokens_per_word(released.pieces, held_out)
    assert tokens_per_word(learned.pieces, seen) < tokens_per_word(released.pieces, seen)
    tokenizer = WordPieceTokenizer(learned)
    unknown = sum(count for word, count in held_out.items() if tokenizer.unk_id in tokenizer.encode(word))
    assert unknown < 0.001 * held_out.total()


def test_dropping_the_least_used_pieces_shortens_text_and_leaves_no_dead_piece(
    wikipedia: tuple[list[str], Counter[str]],
):
    texts, held_out = wikipedia
    counts = count_words(texts, do_lower_case=True, max_distinct_words=1_000_000)
    characters = choose_characters(counts, num_slots=4000, coverage=0.99999)
    singles = single_character_pieces(characters)
    words = known_words(counts, characters=characters)
    proposed = propose_pieces(words, number=5000, singles=singles)
    number = 4000 - len(singles)
    plain = [*singles, *proposed[:number]]
    chosen = [*singles, *keep_most_used(proposed, number=number, singles=singles, words=words)]
    assert len(set(chosen)) == 4000
    assert tokens_per_word(chosen, held_out) < tokens_per_word(plain, held_out)
    uses = count_uses(chosen, words=words)
    assert min(uses[piece] for piece in chosen[len(singles) :]) > 0
    plain_uses = count_uses(plain, words=words)
    assert min(plain_uses[piece] for piece in plain[len(singles) :]) == 0
    by_use = [uses[piece] for piece in chosen[len(singles) :]]
    assert by_use == sorted(by_use, reverse=True)
