"""SentencePiece models serve as tokenizers, and what is no tokenizer is named in one line."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from bert_jax.data.tokenization import SentencePieceTokenizer, WordPieceTokenizer, load_tokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary
from bert_jax.errors import UserError

SENTENCES = ("the cat sat on the mat", "a cat and a hat", "İstanbul café ﬁne", "deja vu is not far", "mask cls sep")


def train_model(sentences: tuple[str, ...] = SENTENCES, **options: Any) -> bytes:
    """Train a SentencePiece model in ALBERT's layout."""
    model = io.BytesIO()
    layout = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **{**layout, **options},
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_model()


def test_a_sentencepiece_model_serves_as_tokenizer(model: bytes, tmp_path: Path):
    file = tmp_path / "albert.model"
    file.write_bytes(model)
    tokenizer = load_tokenizer(file, do_lower_case=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.convert_ids_to_pieces(
        [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    ) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    texts = ["The  CAT sat", "", "a hat on the mat 🙂 zq", "\ud800 cat"]
    expected = [processor.encode(text.lower().replace("\ud800", "\ufffd")) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.encode_batch_arrays(texts).ids.dtype == np.uint16
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"
    assert tokenizer.vocab_size == processor.get_piece_size()
    tokenizer.save(tmp_path / "saved")
    for again in (load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        assert again.encode_batch(texts) == expected
        assert (again.fingerprint, again.do_lower_case) == (tokenizer.fingerprint, True)
    cased = load_tokenizer(file, do_lower_case=False)
    assert cased.fingerprint != tokenizer.fingerprint
    assert cased.encode("The") != tokenizer.encode("The")


def test_special_pieces_in_text_are_text_to_a_sentencepiece_model(model: bytes):
    tokenizer = SentencePieceTokenizer(model, do_lower_case=False)
    ids = tokenizer.encode("a [MASK] cat [CLS] [SEP] <pad>")
    assert set(ids).isdisjoint({tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id})


def test_word_starts_of_a_sentencepiece_model_carry_its_mark(model: bytes):
    tokenizer = SentencePieceTokenizer(model)
    for i, piece in enumerate(tokenizer.pieces):
        special = piece in ("<pad>", "[CLS]", "[SEP]", "[MASK]")
        assert tokenizer.is_word_start[i] == (piece.startswith("▁") or special), piece
    words = sum(tokenizer.is_word_start[i] for i in tokenizer.encode("the cat sat"))
    assert words == 3


@pytest.mark.parametrize("text", ["the  cat", "  İstanbul cafe\u0301 ﬁne", "CAT İİ the", "🙂 a", "\u3000cat\n", ""])
def test_spans_of_a_sentencepiece_model_hold_no_white_space(model: bytes, text: str):
    tokenizer = SentencePieceTokenizer(model, do_lower_case=True)
    encoding = tokenizer.encode_with_offsets(text)
    assert encoding.ids == tokenizer.encode(text)
    covered = set()
    for start, end in encoding.offsets:
        assert 0 <= start <= end <= len(text)
        assert text[start:end] == text[start:end].strip()
        covered |= set(range(start, end))
    assert covered == {i for i, char in enumerate(text) if not char.isspace()}
    for piece_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        piece = tokenizer.pieces[piece_id].removeprefix("▁")
        if piece_id != tokenizer.unk_id and text[start:end].isascii():
            assert text[start:end].lower() == piece
        assert start < end or not piece


def test_a_sentencepiece_model_is_taken_for_uncased_where_no_piece_has_upper_case(model: bytes, tmp_path: Path):
    assert SentencePieceTokenizer(train_model(tuple(text.lower() for text in SENTENCES))).do_lower_case
    assert not SentencePieceTokenizer(model).do_lower_case  # İ
    (tmp_path / "m.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert load_tokenizer(tmp_path).do_lower_case
    with pytest.raises(UserError, match=r"do_lower_case=False.*tokenizer_config\.json says True"):
        load_tokenizer(tmp_path, do_lower_case=False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"control_symbols": "[CLS],[SEP]"}, r"no control symbol \[MASK\]"),
        ({"control_symbols": "[CLS],[SEP]", "user_defined_symbols": "[MASK]"}, r"no control symbol \[MASK\]"),
        ({"pad_id": -1, "unk_id": 0}, r"no control symbol <pad> or \[PAD\]"),
    ],
)
def test_a_sentencepiece_model_in_another_layout_is_refused(options: dict[str, Any], complaint: str, tmp_path: Path):
    file = tmp_path / "other.model"
    file.write_bytes(train_model(**options))
    with pytest.raises(UserError, match=complaint) as caught:
        load_tokenizer(file)
    assert str(file) in str(caught.value)


def test_what_is_no_tokenizer_is_named_in_one_line(model: bytes, tmp_path: Path):
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"no model at all")
    empty = tmp_path / "empty.model"
    empty.write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    WordPieceTokenizer(Vocabulary(SPECIAL_PIECES, do_lower_case=True)).save(tmp_path / "both")
    (tmp_path / "both" / "spiece.model").write_bytes(model)
    for path, complaint in (
        (broken, "not a SentencePiece model"),
        (empty, "not a SentencePiece model"),
        (tmp_path / "absent.model", "cannot be read"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "nothing", "neither vocab.txt nor a .model file"),
        (tmp_path / "both", "vocab.txt, spiece.model"),
    ):
        with pytest.raises(UserError) as caught:
            load_tokenizer(path)
        message = str(caught.value)
        assert str(path) in message
        assert complaint in message
        assert "\n" not in message
