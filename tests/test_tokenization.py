"""Ids equal those of google-research/bert's tokenization.py, and spans point into the original text."""

import functools
import pickle
import random
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bert_jax.data.tokenization import Tokenizer, WordPieceTokenizer, load_tokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary
from bert_jax.data.wordpiece import basic_words, segments

RELEASED = ("uncased", "cased", "chinese", "multilingual-cased")
# Characters on which tokenizers differ: dropped, white space to some, case that depends on neighbors or changes
# length, marks that NFD reorders, ligatures, Hangul, CJK and its compatibility forms, astral planes, private use.
HARD = (
    "\0\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029\xa0\u3000\u200b\u200d\u00ad\ufeff\ufffd \t\r\n'.:·\u2019-[]#_"
    "\u03a3\u03c3\u03c2İ\u0131ßẞ≠ŉǰ\u037e\u1fef\u0301\u0327\u0345\u0308\u302e\u0f71\u0f72\U0001d165\U0001d16d"
    "ﬁﬀÅÅé한국가각中文\uf900\u9fff\ua000\U0002f800\U0002b820\U0002ebf0あア\ue000\U000f0000\ud800\udc00\U0001d4b3😀①Ⅷ½"
)
CAPITAL_SIGMA, SIGMA, FINAL_SIGMA = "\u03a3", "\u03c3", "\u03c2"


# --- The original's algorithm, written anew from its rules, one character at a time; plain on purpose. ---

CJK_BLOCKS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


@functools.cache
def cleaned(char: str) -> str:
    category = unicodedata.category(char)
    if char in ("\t", "\n", "\r") or category == "Zs":
        return " "
    if category in ("Cc", "Cf") or char == "\ufffd":
        return ""
    return f" {char} " if any(low <= ord(char) <= high for low, high in CJK_BLOCKS) else char


@functools.cache
def is_punctuation(char: str) -> bool:
    return char in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(char).startswith("P")


def reference_words(text: str, *, do_lower_case: bool) -> list[str]:
    words: list[str] = []
    for token in "".join(map(cleaned, text)).split():
        if do_lower_case:
            decomposed = unicodedata.normalize("NFD", token.lower())
            token = "".join([char for char in decomposed if unicodedata.category(char) != "Mn"])
        current = ""
        for char in token:
            if is_punctuation(char):
                words += [current, char]
                current = ""
            else:
                current += char
        words.append(current)
    return [part for word in words for part in word.split()]


def reference_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
    if len(word) > 200:
        return ["[UNK]"]
    pieces: list[str] = []
    rest = word
    while rest:
        prefix = "##" if pieces else ""
        for length in range(len(rest), 0, -1):
            if prefix + rest[:length] in vocabulary:
                pieces.append(prefix + rest[:length])
                rest = rest[length:]
                break
        else:
            return ["[UNK]"]
    return pieces


class Reference:
    """The original, with a memo for the cutting of a word, which is a function of the word alone."""

    def __init__(self, file: Path, *, do_lower_case: bool):
        lines = file.read_bytes().decode().removesuffix("\n").split("\n")
        self.vocabulary = {line.strip(): i for i, line in enumerate(lines)}
        self.do_lower_case = do_lower_case
        self.memo: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in reference_words(text, do_lower_case=self.do_lower_case):
            if word not in self.memo:
                self.memo[word] = [self.vocabulary[piece] for piece in reference_pieces(word, self.vocabulary)]
            ids += self.memo[word]
        return ids


def released(shared_data: Path, name: str) -> tuple[Tokenizer, Reference]:
    file = shared_data / "vocab" / f"bert-base-{name}-vocab.txt"
    tokenizer = load_tokenizer(file)
    assert tokenizer.do_lower_case == (name in ("uncased", "chinese"))
    return tokenizer, Reference(file, do_lower_case=tokenizer.do_lower_case)


def assert_equal_ids(tokenizer: Tokenizer, reference: Reference, texts: list[str]) -> None:
    wrong = []
    for start in range(
        0, len(texts), 20_000
    ):  # few objects alive at a time: the garbage collector looks at all of them
        some = texts[start : start + 20_000]
        reference.memo.clear()
        wrong += [
            (ascii(text[:80]), ours, expected)
            for text, ours in zip(some, tokenizer.encode_batch(some), strict=True)
            if ours != (expected := reference.encode(text))
        ]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts differ: {wrong[:3]}"


def shared_lines(shared_data: Path) -> list[str]:
    """Return lines of every kind of shared text, in an order that mixes them."""
    lines: list[str] = []
    for pattern in ("pretrain_en/wiki_*", "pretrain_zh/*.txt", "glue/*/*.tsv", "glue/MRPC/*", "conll2003/*"):
        for file in sorted(shared_data.glob(pattern)):
            lines += [line[:200] for line in file.read_bytes().decode("utf-8", "replace").split("\n")[:9000]]
    for file in sorted(shared_data.glob("pretrain_zh/*.json")) + sorted(shared_data.glob("squad/dev*.json")):
        text = file.read_text(encoding="utf-8")  # one line
        lines += [text[i : i + 200] for i in range(0, len(text), 200)]
    random.Random(0).shuffle(lines)
    return lines


# --- Exactness ---


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_ids_equal_the_original_on_every_code_point(shared_data: Path, name: str):
    # All of Unicode with one vocabulary; with the others the unassigned, private and surrogate ones are thinned out for
    # time. The soak has them all.
    check_code_points(shared_data, name, every=1 if name == "uncased" else 64)


@pytest.mark.soak
@pytest.mark.parametrize("name", RELEASED)
def test_ids_equal_the_original_on_every_code_point_with_every_vocabulary(shared_data: Path, name: str):
    check_code_points(shared_data, name, every=1)


def check_code_points(shared_data: Path, name: str, *, every: int) -> None:
    tokenizer, reference = released(shared_data, name)
    texts = []
    for char in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(char) not in ("Cn", "Co", "Cs"):
            texts.append(f"{char} a{char}b")
        elif ord(char) % every == 0:
            texts.append(f"{char}b")
    assert len(texts) == 0x110000 or (every > 1 and len(texts) > 140_000)
    assert_equal_ids(tokenizer, reference, texts)


@pytest.mark.parametrize("name", RELEASED)
def test_ids_equal_the_original_on_shared_text(shared_data: Path, name: str):
    # 100,000 lines in all, a quarter for each vocabulary; the soak has 100,000 for each.
    lines = shared_lines(shared_data)
    tokenizer, reference = released(shared_data, name)
    mine = lines[RELEASED.index(name) * 25_000 :][:25_000]
    assert len(mine) == 25_000
    assert_equal_ids(tokenizer, reference, mine)


@pytest.mark.soak
@pytest.mark.parametrize("name", RELEASED)
def test_ids_equal_the_original_on_all_shared_text(shared_data: Path, name: str):
    lines = shared_lines(shared_data)[:100_000]
    assert len(lines) == 100_000
    assert_equal_ids(*released(shared_data, name), lines)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def hard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Reference]:
    """Return a tokenizer whose pieces are hard characters and pairs of them, so that most words are not [UNK]."""
    rng = random.Random(0)
    normal = sorted(
        {c for char in HARD + "abcABC" for word in reference_words(char, do_lower_case=request.param) for c in word}
    )
    normal = [char for char in normal if not "\ud800" <= char <= "\udfff"]
    pairs = {rng.choice(normal) + rng.choice(normal) for _ in range(500)}
    forms = [form for piece in [*normal, *sorted(pairs)] for form in (piece, f"##{piece}")]
    file = tmp_path_factory.mktemp("hard") / "vocab.txt"
    file.write_bytes("".join(f"{piece}\n" for piece in dict.fromkeys([*SPECIAL_PIECES, *forms])).encode())
    return load_tokenizer(file, do_lower_case=request.param), Reference(file, do_lower_case=request.param)


def hard_texts(number: int, *, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(number):
        weight = rng.random()
        yield "".join(rng.choice(HARD if rng.random() < weight else "abcABC ") for _ in range(rng.randrange(40)))


def test_ids_equal_the_original_on_random_hard_text(hard: tuple[Tokenizer, Reference]):
    tokenizer, reference = hard
    texts = list(hard_texts(20_000, seed=1))
    assert_equal_ids(tokenizer, reference, texts)
    known = sum(i != tokenizer.unk_id for text in texts for i in tokenizer.encode(text))
    assert known > 100_000  # else the comparison would be of unknown words


def test_ids_of_a_text_do_not_depend_on_batch_or_memory(hard: tuple[Tokenizer, Reference]):
    tokenizer, reference = hard
    assert isinstance(tokenizer, WordPieceTokenizer)
    texts = ["", *hard_texts(3000, seed=2), "\0", " ", "a " * 140_000, ""]
    expected = [reference.encode(text) for text in texts]
    forgetful = WordPieceTokenizer(tokenizer.vocabulary, cache_size=3)
    for other in (tokenizer, forgetful):
        assert other.encode_batch(texts) == expected
        assert [other.encode(text) for text in texts] == expected
        assert [other.encode_with_offsets(text).ids for text in texts] == expected
    assert len(forgetful._ids_of_word) <= 3
    assert len(forgetful._ids_of_word._old) <= 3


def test_batch_arrays_hold_the_ids_of_all_texts_end_to_end(hard: tuple[Tokenizer, Reference]):
    tokenizer, _ = hard
    texts = ["a b", "", "c\0\0 A", "\x85"]
    batch = tokenizer.encode_batch_arrays(texts)
    assert batch.ids.dtype == np.uint16
    assert batch.lengths.tolist() == [2, 0, 2, 0]
    assert batch.ids.tolist() == tokenizer.encode("a b c A")
    empty = tokenizer.encode_batch_arrays([])
    assert (empty.ids.dtype, empty.ids.shape, empty.lengths.shape) == (np.uint16, (0,), (0,))


@pytest.mark.parametrize(("size", "dtype"), [(65_535, np.uint16), (65_536, np.int32), (65_537, np.int32)])
def test_ids_beyond_uint16_are_int32(size: int, dtype: type):
    numbers = [f"{i}" for i in range(size - len(SPECIAL_PIECES))]
    tokenizer = WordPieceTokenizer(Vocabulary((*SPECIAL_PIECES, *numbers), do_lower_case=True))
    batch = tokenizer.encode_batch_arrays([numbers[-1], numbers[0]])
    assert batch.ids.dtype == dtype
    assert batch.ids.tolist() == [size - 1, len(SPECIAL_PIECES)]
    assert batch.lengths.tolist() == [1, 1]


# --- The rules one by one ---


@pytest.fixture(scope="module")
def small() -> WordPieceTokenizer:
    letters = [form for char in "abcdefghijklmnopqrstuvwxyz" for form in (char, f"##{char}")]
    pieces = (
        *SPECIAL_PIECES,
        *letters,
        "cafe",
        "##fe",
        "[",
        "]",
        "mask",
        "=",
        "中",
        "##ᆨ",
        "ᄒ",
        "##ᅡ",
        "##ᆫ",
        "ᄀ",
        "##ᅮ",
    )
    return WordPieceTokenizer(Vocabulary(pieces, do_lower_case=True))


def test_a_word_of_200_characters_is_cut_and_one_of_201_is_unknown(small: WordPieceTokenizer):
    assert small.convert_ids_to_pieces(small.encode("a" * 200)) == ["a", *["##a"] * 199]
    assert small.encode("a" * 201) == [small.unk_id]
    assert small.encode("a" * 201 + "=b") == [small.unk_id, *small.encode("= b")]
    assert small.encode_with_offsets("a" * 201).offsets == [(0, 201)]
    # Counted after normalization: the accents of 150 letters do not count, what lower-casing adds does.
    assert len(small.encode("e\u0301" * 150)) == 150
    shorter = WordPieceTokenizer(small.vocabulary, max_input_chars_per_word=3)
    assert shorter.encode("abc abcd") == [*small.encode("abc"), small.unk_id]
    assert pickle.loads(pickle.dumps(shorter)).encode("abcd") == [small.unk_id]


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "\t\r\n", "\x01\x85\x1c\u200b\u200d\ufeff\ufffd", "\u0301\u0308", "\u2028"]
)
def test_text_of_nothing_visible_has_no_ids(small: WordPieceTokenizer, text: str):
    assert small.encode(text) == []
    assert small.encode_with_offsets(text).ids == []
    assert small.encode_batch([text, text]) == [[], []]


def test_special_pieces_in_text_are_text(small: WordPieceTokenizer):
    assert small.convert_ids_to_pieces(small.encode("[MASK]a")) == ["[", "mask", "]", "a"]
    for piece in SPECIAL_PIECES:
        assert set(small.encode(f"{piece} a{piece}")).isdisjoint(
            {small.mask_id, small.cls_id, small.sep_id, small.pad_id}
        )


def test_a_part_that_matches_nothing_makes_its_word_unknown(small: WordPieceTokenizer):
    assert small.encode("ab€cd ab") == [small.unk_id, *small.encode("ab")]


def test_decode_joins_the_pieces_of_a_word(small: WordPieceTokenizer):
    ids = small.encode("Café  gag [mask]!")
    assert small.decode(ids) == "cafe gag [ mask ] [UNK]"
    assert small.decode([small.cls_id, *small.encode("abc"), small.sep_id]) == "[CLS] abc [SEP]"
    assert small.decode([]) == ""


def test_word_starts_are_the_pieces_without_the_mark(small: WordPieceTokenizer):
    assert small.is_word_start.dtype == bool
    assert small.is_word_start.shape == (small.vocab_size,)
    assert [small.is_word_start[i] for i in small.encode("cafefe")] == [True, False]
    assert small.is_word_start[[small.cls_id, small.unk_id]].all()


def test_a_text_is_cut_for_memory_only_where_no_word_changes():
    for text in [*hard_texts(300, seed=3), "A\u03a3'A中\u03a3", "é" * 50, "中e\u0301" * 9]:
        for max_chars in (1, 2, 7):
            parts = list(segments(text, max_chars=max_chars))
            assert "".join(parts) == text
            for casing in (True, False):
                words = [word for part in parts for word in basic_words(part, do_lower_case=casing)]
                assert words == basic_words(text, do_lower_case=casing)
    assert [len(part) for part in segments("中" * 10, max_chars=4)] == [5, 5]
    assert list(segments("", max_chars=4)) == [""]


def test_a_line_longer_than_a_batch_loses_nothing(small: WordPieceTokenizer):
    assert len(small.encode("中" * 1_200_000)) == 1_200_000
    assert small.encode("a" * 1_200_000) == [small.unk_id]
    assert len(small.encode("ab c " * 300_000)) == 900_000


# --- Spans ---


@pytest.mark.parametrize(
    ("text", "pieces", "offsets"),
    [
        ("a cafe", ["a", "cafe"], [(0, 1), (2, 6)]),
        ("CAFÉfe", ["cafe", "##fe"], [(0, 4), (4, 6)]),
        ("cafe\u0301fe", ["cafe", "##fe"], [(0, 5), (5, 7)]),  # the accent belongs to its letter
        ("\u0301a", ["a"], [(1, 2)]),  # to none: it has no letter
        ("caf\u200de\u0301", ["cafe"], [(0, 6)]),
        ("a\0b", ["a", "##b"], [(0, 1), (2, 3)]),
        ("\x85a\x1cb", ["a", "##b"], [(1, 2), (3, 4)]),
        ("İb", ["i", "##b"], [(0, 1), (1, 2)]),  # lowers to two characters
        ("a≠b", ["a", "=", "b"], [(0, 1), (1, 2), (2, 3)]),  # decomposes into punctuation and a mark
        ("a中\u0301b", ["a", "中", "b"], [(0, 1), (1, 2), (3, 4)]),
        ("한국", ["[UNK]"], [(0, 2)]),
        ("한", ["ᄒ", "##ᅡ", "##ᆫ"], [(0, 1)] * 3),
        ("😀 a", ["[UNK]", "a"], [(0, 1), (2, 3)]),
        ("\u2028a\u2029b\u3000c", ["a", "b", "c"], [(1, 2), (3, 4), (5, 6)]),
        ("x😀\u200d y", ["[UNK]", "y"], [(0, 2), (4, 5)]),
    ],
)
def test_spans_point_at_the_original_characters(
    small: WordPieceTokenizer, text: str, pieces: list[str], offsets: list[tuple[int, int]]
):
    encoding = small.encode_with_offsets(text)
    assert small.convert_ids_to_pieces(encoding.ids) == pieces
    assert encoding.offsets == offsets


def test_the_text_of_a_span_normalises_to_its_piece(hard: tuple[Tokenizer, Reference]):
    tokenizer, reference = hard
    checked = 0
    for text in hard_texts(5000, seed=4):
        encoding = tokenizer.encode_with_offsets(text)
        assert encoding.ids == reference.encode(text)
        spans = encoding.offsets
        for index, (piece_id, (start, end)) in enumerate(zip(encoding.ids, spans, strict=True)):
            assert 0 <= start < end <= len(text)
            piece = tokenizer.pieces[piece_id].removeprefix("##")
            alone = all(spans[i][1] <= start or end <= spans[i][0] for i in range(len(spans)) if i != index)
            # A final sigma is one only in its word; characters cut apart share a span and normalize together.
            normal = "".join(reference_words(text[start:end], do_lower_case=tokenizer.do_lower_case)).replace(
                FINAL_SIGMA, SIGMA
            )
            if piece_id == tokenizer.unk_id or CAPITAL_SIGMA in text[start:end]:
                continue
            piece = piece.replace(FINAL_SIGMA, SIGMA)
            assert normal == piece if alone else piece in normal, ascii(text)
            checked += alone
    assert checked > 20_000


# --- Files ---


def test_a_saved_tokenizer_is_loaded_equal(small: WordPieceTokenizer, tmp_path: Path):
    cased = WordPieceTokenizer(Vocabulary(small.pieces, do_lower_case=False))
    for name, tokenizer in (("uncased", small), ("cased", cased)):
        tokenizer.save(tmp_path / name)
        again = load_tokenizer(tmp_path / name)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.do_lower_case == tokenizer.do_lower_case  # though the pieces alone look uncased
        assert again.encode("Café A") == tokenizer.encode("Café A")
    assert small.fingerprint != cased.fingerprint


def test_pickling_leaves_the_memo_behind(small: WordPieceTokenizer):
    fresh = WordPieceTokenizer(small.vocabulary)
    size = len(pickle.dumps(fresh))
    fresh.encode_batch([f"word{i}" for i in range(5000)])
    assert len(pickle.dumps(fresh)) == size
    again = pickle.loads(pickle.dumps(fresh))
    assert again.encode("cafe abc") == small.encode("cafe abc")
    assert again.fingerprint == small.fingerprint
