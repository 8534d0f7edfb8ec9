"""Added tokens of every form keep the ids of HuggingFace's tokenizer, in text, in saved vocabularies and in exports."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_helpers import random_source, vocabulary

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.tokenizer_files import find_tokenizer, write_tokenizer_files
from bert_jax.convert.vocabulary_extension import extend_source
from bert_jax.data.added_tokens import AddedToken
from bert_jax.data.tokenization import WordPieceTokenizer, load_tokenizer
from bert_jax.data.vocabulary import save_vocabulary
from bert_jax.errors import UserError

SIZE = vocabulary().size
IDS = {piece: index for index, piece in enumerate(vocabulary().pieces)}
NEW = {"covid": SIZE, "[E1]": SIZE + 1}
FAST = [{"id": index, "content": content} for content, index in NEW.items()]


def folder_of(path: Path, *, files: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Write a vocabulary's folder as another program would; `settings` go to tokenizer_config.json."""
    path.mkdir()
    save_vocabulary(vocabulary(), directory=path)
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, **settings}))
    for name, content in (files or {}).items():
        (path / name).write_text(json.dumps(content))
    return path


def fast_folder(path: Path, *, added: list[dict[str, Any]], **model: Any) -> Path:
    """Write a folder with a tokenizer.json."""
    path.mkdir()
    write_tokenizer_files(WordPieceTokenizer(vocabulary()), path, max_seq_length=32)
    content = json.loads((path / "tokenizer.json").read_text())
    content["added_tokens"] += added
    content["model"] |= model
    (path / "tokenizer.json").write_text(json.dumps(content))
    return path


def tokenizer_of(folder: Path) -> WordPieceTokenizer:
    tokenizer = find_tokenizer(folder)
    assert isinstance(tokenizer, WordPieceTokenizer)
    return tokenizer


def with_tokens(*tokens: AddedToken, do_lower_case: bool = True) -> WordPieceTokenizer:
    return WordPieceTokenizer(dataclasses.replace(vocabulary(do_lower_case=do_lower_case), added=tokens))


def pieces(tokenizer: WordPieceTokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_pieces(tokenizer.encode(text))


FORMS = {
    "added_tokens.json": lambda path: folder_of(path, files={"added_tokens.json": NEW}),
    "added_tokens_decoder": lambda path: folder_of(
        path, added_tokens_decoder={str(index): {"content": content} for content, index in NEW.items()}
    ),
    "tokenizer.json": lambda path: fast_folder(path, added=FAST),
    "additional_special_tokens": lambda path: folder_of(path, additional_special_tokens=list(NEW)),
    "special_tokens_map.json": lambda path: folder_of(
        path, files={"special_tokens_map.json": {"additional_special_tokens": [{"content": name} for name in NEW]}}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_added_tokens_of_every_form_are_kept_whole_with_their_ids(tmp_path, form):
    tokenizer = tokenizer_of(FORMS[form](tmp_path / "folder"))
    assert tokenizer.vocab_size == SIZE + 2
    expected = [SIZE, IDS["c"], IDS["##a"], IDS["##r"], SIZE + 1, IDS["the"], SIZE + 1]
    assert tokenizer.encode("covidcar [E1]the[E1]") == expected
    encoding = tokenizer.encode_with_offsets("a covidcar [E1]")
    assert encoding.ids[1] == SIZE
    assert [encoding.offsets[1], encoding.offsets[-1]] == [(2, 7), (11, 15)]


def test_a_token_of_the_vocabulary_can_be_kept_whole_too(tmp_path):
    tokenizer = tokenizer_of(folder_of(tmp_path / "folder", additional_special_tokens=["[unused1]"]))
    assert tokenizer.vocab_size == SIZE
    assert pieces(tokenizer, "the [unused1]cat") == ["the", "[unused1]", "cat"]
    assert "[unused1]" not in pieces(WordPieceTokenizer(vocabulary()), "the [unused1]cat")


def test_normalized_tokens_are_found_in_normalized_text_and_others_in_the_text_itself():
    normalized = with_tokens(AddedToken(SIZE, "Naïve"))
    assert pieces(normalized, "NAIVE naïve") == ["Naïve", "Naïve"]
    assert normalized.encode_with_offsets("x NAÏVE\u0301!").offsets[1] == (2, 8)
    exact = with_tokens(AddedToken(SIZE, "Naïve", normalized=False))
    assert pieces(exact, "Naïve naive") == ["Naïve", "n", "##a", "##i", "##v", "##e"]


def test_the_longest_token_wins_and_a_single_word_does_not_match_inside_words():
    tokenizer = with_tokens(AddedToken(SIZE, "ab"), AddedToken(SIZE + 1, "abc"), AddedToken(SIZE + 2, "zz", True))
    assert pieces(tokenizer, "xabcab") == ["x", "abc", "ab"]
    assert pieces(tokenizer, "zz. azz zz") == ["zz", ".", "a", "##z", "##z", "zz"]


def test_bert_s_special_tokens_are_still_text():
    tokenizer = with_tokens(AddedToken(SIZE, "[E1]"))
    assert tokenizer.mask_id not in tokenizer.encode("the [MASK] [E1]")


def test_batches_give_the_ids_of_each_text_alone():
    tokenizer = with_tokens(AddedToken(SIZE, "covid"))
    texts = ["", "covid", "the cat", "covid covid the", "\0covid\0", "the"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert pickle.loads(pickle.dumps(tokenizer)).encode(texts[3]) == tokenizer.encode(texts[3])


def test_saving_loading_and_exporting_keep_added_tokens_and_the_word_limit(tmp_path):
    token = AddedToken(SIZE, "covid", single_word=True, rstrip=True, special=True)
    tokenizer = WordPieceTokenizer(
        dataclasses.replace(vocabulary(), added=(token, AddedToken(IDS["cat"], "cat")), max_input_chars_per_word=7)
    )
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "exported").mkdir()
    write_tokenizer_files(tokenizer, tmp_path / "exported", max_seq_length=32)
    for folder in (tmp_path / "saved", tmp_path / "exported"):
        again = tokenizer_of(folder)
        assert set(again.vocabulary.added) == set(tokenizer.vocabulary.added)
        assert again.fingerprint == tokenizer.fingerprint == load_tokenizer(folder).fingerprint
        assert again.encode("aaaaaaa aaaaaaaa")[-1] == again.unk_id
    assert WordPieceTokenizer(vocabulary()).fingerprint != tokenizer.fingerprint


def test_an_export_keeps_the_rows_of_added_tokens(tmp_path):
    source = random_source("small-test")
    assert isinstance(source.tokenizer, WordPieceTokenizer)
    grown = extend_source(source, words=["covid", "zebra", "panda", "koala"], report=lambda line: None)
    rows = dataclasses.replace(grown, tokenizer=with_tokens(AddedToken(SIZE, "[E1]")))
    export_folder(rows, out=tmp_path / "out", report=lambda line: None)
    loaded = load_pretrained(tmp_path / "out")
    assert loaded.require_tokenizer().encode("[E1]") == [SIZE]
    tables = [np.asarray(item.params["encoder"]["embeddings"]["word_embeddings"]) for item in (rows, loaded)]
    assert np.array_equal(tables[0], tables[1])


def test_extending_a_vocabulary_leaves_the_ids_of_added_tokens(tmp_path):
    source = random_source("small-test")
    grown = extend_source(source, words=["a1", "b1", "c1", "zebra"], report=lambda line: None)
    source = dataclasses.replace(grown, tokenizer=with_tokens(AddedToken(SIZE, "[E1]")))
    extended = extend_source(source, words=["d1", "e1", "f1", "koala"], report=lambda line: None).require_tokenizer()
    assert extended.encode("[E1]") == [SIZE]
    assert extended.encode("koala") == [SIZE + 1]


def test_an_unused_slot_that_is_an_added_token_is_left_to_it():
    source = random_source("small-test")
    first = source.require_tokenizer().pieces[5]
    assert first.startswith("[unused")
    source = dataclasses.replace(source, tokenizer=with_tokens(AddedToken(5, first)))
    extended = extend_source(source, words=["d1", "e1", "koala"], report=lambda line: None).require_tokenizer()
    assert extended.encode(first) == [5]
    assert [extended.pieces.index(word) for word in ("d1", "e1", "koala")] == [6, 7, SIZE]


@pytest.mark.parametrize("limit", [3, 100])
def test_the_word_limit_of_tokenizer_json_is_honored(tmp_path, limit):
    tokenizer = tokenizer_of(fast_folder(tmp_path / "folder", added=[], max_input_chars_per_word=limit))
    assert tokenizer.encode("a" * (limit + 1)) == [tokenizer.unk_id]
    assert len(tokenizer.encode("a" * limit)) == limit


def test_tokens_without_a_row_are_named(tmp_path):
    folder = tmp_path / "out"
    export_folder(random_source("small-test"), out=folder, report=lambda line: None)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"additional_special_tokens": ["[E1]"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"none for 1 of its added_tokens \('\[E1\]'\)"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "files", "told"),
    [
        ({}, {"added_tokens.json": {"covid": SIZE + 1}}, "the next id after the vocabulary is"),
        ({}, {"added_tokens.json": {"cat": 0}}, "its id in the vocabulary is"),
        ({}, {"added_tokens.json": {"covid": None}}, "gives 'covid' the id None"),
        ({"added_tokens_decoder": []}, {}, "added_tokens_decoder must map ids"),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, {}, "the id x"),
        ({"added_tokens_decoder": {str(SIZE): {"content": "y", "normalized": "no"}}}, {}, "must be true or false"),
        ({"additional_special_tokens": "[E1]"}, {}, "must be a list"),
        ({"additional_special_tokens": [["E1"]]}, {}, "write an object"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, {}, "tokenizer_class is BertJapaneseTokenizer"),
        ({"tokenizer_class": "AlbertTokenizer"}, {}, "tokenizer_class is AlbertTokenizer"),
        ({"tokenizer_class": ["BertTokenizer"]}, {}, "tokenizer_class is"),
        ({}, {"config.json": {"tokenizer_class": "BertJapaneseTokenizer"}}, "config.json: tokenizer_class is BertJap"),
        ({"do_basic_tokenize": False}, {}, "do_basic_tokenize is 'False'"),
        ({"word_tokenizer_type": "mecab"}, {}, "word_tokenizer_type is 'mecab'"),
        ({"cls_token": {"content": "<s>"}}, {}, "cls_token is '<s>'"),
        ({"max_input_chars_per_word": "many"}, {}, "max_input_chars_per_word is 'many'"),
    ],
)
def test_another_tokenizer_s_folder_is_refused_by_name(tmp_path, settings, files, told):
    folder = folder_of(tmp_path / "folder", files=files, **settings)
    for read in (find_tokenizer, load_tokenizer):
        with pytest.raises(UserError) as caught:
            read(folder)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "DistilBertTokenizerFast"])
def test_classes_that_tokenize_as_bert_does_are_read(tmp_path, name):
    folder = folder_of(tmp_path / "folder", tokenizer_class=name, do_basic_tokenize=True, never_split=None)
    assert tokenizer_of(folder).fingerprint == vocabulary().fingerprint


def test_two_files_that_disagree_about_casing_are_refused(tmp_path):
    folder = fast_folder(tmp_path / "folder", added=[])
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"lowercase=True, but tokenizer_config.json has do_lower_case=False"):
        find_tokenizer(folder)
