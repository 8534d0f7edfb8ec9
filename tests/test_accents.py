"""Lower-casing and the stripping of accents are two settings, with HuggingFace's meaning and a default by script."""

import itertools
import json
from pathlib import Path

import pytest

from bert_jax.convert.tokenizer_files import find_tokenizer, write_tokenizer_files
from bert_jax.data.accents import strips_accents, with_accents
from bert_jax.data.tokenization import WordPieceTokenizer, load_tokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary, learn_vocabulary
from bert_jax.data.wordpiece import aligned_words, basic_words
from bert_jax.errors import UserError

ENGLISH, FRENCH = "The naïve café was closed.", "Déjà vu: l'été à la plage, où Noël tombait."
VIETNAMESE, RUSSIAN, GREEK = "Tôi yêu tiếng Việt lắm.", "Мой ёж шёл домой.", "Η γλώσσα είναι ωραία."
ARABIC, HEBREW = "كَتَبَ الوَلَدُ الدَّرْسَ", "שָׁלוֹם עֲלֵיכֶם"
THAI, HINDI, BENGALI = "ต้นไม้ที่บ้านของฉัน", "मैं हिन्दी में लिखता हूँ", "আমি বাংলায় লিখি"
JAPANESE, TAMIL, KHMER = "がぎぐげごパピプペポ", "நான் தமிழ் பேசுகிறேன்", "ខ្ញុំនិយាយភាសាខ្មែរ"
SETTINGS = list(itertools.product([True, False], [True, False, None]))
EMOJI = "so happy ❤️ ❤️ ❤️ 👩‍👩‍👧‍👦 ☀️"


@pytest.mark.parametrize("text", [ENGLISH, FRENCH, VIETNAMESE, RUSSIAN, GREEK, ARABIC, HEBREW, EMOJI, "东京很大。"])
def test_accents_are_stripped_by_default_where_bert_strips_them(text: str):
    assert strips_accents("auto", do_lower_case=True, texts=[text])[0] is None


@pytest.mark.parametrize("text", [THAI, HINDI, BENGALI, JAPANESE, TAMIL, KHMER])
def test_vowels_and_tones_are_kept_by_default(text: str):
    choice, fraction = strips_accents("auto", do_lower_case=True, texts=[ENGLISH, text])
    assert choice is False
    assert fraction > 0.01
    assert strips_accents("yes", do_lower_case=True, texts=[text])[0] is None
    assert strips_accents("auto", do_lower_case=False, texts=[text])[0] is None


@pytest.mark.parametrize(("lower", "strip"), SETTINGS)
def test_the_two_settings_are_independent_and_keep_their_offsets(lower: bool, strip: bool | None):
    [word] = basic_words("ÉTÉ", do_lower_case=lower, strip_accents=strip)
    stripped = lower if strip is None else strip
    assert word == ("ETE" if stripped else "ÉTÉ").lower() if lower else word == ("ETE" if stripped else "ÉTÉ")
    for text in " ".join((FRENCH, VIETNAMESE, RUSSIAN, THAI, HINDI, JAPANESE, ARABIC, "ΣΑΣ İstanbul ﬁ")).split():
        aligned = aligned_words(text, do_lower_case=lower, strip_accents=strip)
        assert [item.text for item in aligned] == basic_words(text, do_lower_case=lower, strip_accents=strip)
        assert all(len(item.text) == len(item.starts) == len(item.ends) for item in aligned)
        assert not aligned or (aligned[0].starts[0], max(aligned[-1].ends)) == (0, len(text))


@pytest.mark.parametrize(("lower", "strip"), SETTINGS)
def test_words_are_those_of_huggingface(lower: bool, strip: bool | None):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the parity extra: pip install -e '.[parity]'")
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)
    split = tokenizers.pre_tokenizers.BertPreTokenizer()
    for text in (ENGLISH, FRENCH, VIETNAMESE, RUSSIAN, THAI, HINDI, JAPANESE, ARABIC, EMOJI):
        expected = [word for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text))]
        assert basic_words(text, do_lower_case=lower, strip_accents=strip) == expected


def test_the_fingerprint_changes_only_where_the_two_differ():
    pieces = (*SPECIAL_PIECES, "a")
    prints = {
        (lower, strip): Vocabulary(pieces, do_lower_case=lower, strip_accents=strip).fingerprint
        for lower in (True, False)
        for strip in (True, False, None)
    }
    assert prints[True, None] == prints[True, True] != prints[True, False]
    assert prints[False, None] == prints[False, False] != prints[False, True]
    assert len(set(prints.values())) == 4


def test_the_setting_travels_with_the_vocabulary_and_its_export(tmp_path: Path):
    vocabulary = learn_vocabulary([THAI * 3, ENGLISH.upper()], vocab_size=100, do_lower_case=True, strip_accents=False)
    tokenizer = WordPieceTokenizer(vocabulary)
    assert "้" in "".join(tokenizer.pieces)
    tokenizer.save(tmp_path / "saved")
    write_tokenizer_files(tokenizer, tmp_path / "exported", max_seq_length=64)
    (tmp_path / "fast").mkdir()
    (tmp_path / "exported" / "tokenizer.json").rename(tmp_path / "fast" / "tokenizer.json")
    assert json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())["strip_accents"] is False
    for folder in ("saved", "exported", "fast"):
        again = find_tokenizer(tmp_path / folder)
        assert again is not None
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(THAI + ENGLISH) == tokenizer.encode(THAI + ENGLISH)
        assert tokenizer.unk_id not in again.encode(THAI)


def test_a_setting_contrary_to_the_files_of_the_vocabulary_is_refused(tmp_path: Path):
    WordPieceTokenizer(Vocabulary((*SPECIAL_PIECES, "a"), do_lower_case=True, strip_accents=False)).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert with_accents(tokenizer, "no") is with_accents(tokenizer, "auto") is tokenizer
    with pytest.raises(UserError, match=r"says strip_accents=False: set config\.data\.strip_accents=auto"):
        with_accents(tokenizer, "yes")
    free = WordPieceTokenizer(Vocabulary((*SPECIAL_PIECES, "a"), do_lower_case=True))
    assert not with_accents(free, "no").strip_accents
