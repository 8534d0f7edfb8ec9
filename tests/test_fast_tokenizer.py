"""A tokenizer.json of another vocabulary than WordPiece: the library's ids, framing, masks, words, files and export."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from test_modernbert import small_source

from bert_jax.convert.added_rows import with_added_tokens
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.tokenizer_files import find_tokenizer
from bert_jax.data.fast_tokenizer import FastTokenizer
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.model.parameter_names import flatten, nest
from bert_jax.prediction.model import Model

tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers extra: pip install -e '.[tokenizers]'")

SPECIALS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
TEXTS = [
    "the cat sat on the mat",
    "a dog ran to the red house, was it not?",
    "Don't stop: naïve café 本",
    "the the cat",
]


def byte_level(folder: Path, *, frame: bool = True, mask: str = "[MASK]") -> Path:
    """Write a small byte-level BPE tokenizer like ModernBERT's, whose mask token takes the space before it."""
    specials = [*SPECIALS[:-1], mask]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(TEXTS * 20, trainer)
    library.add_special_tokens([tokenizers.AddedToken(mask, lstrip=True, special=True)])
    if frame:
        ids = [(name, library.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        library.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
        )
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": mask, "cls_token": "[CLS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    others = {"sep_token": {"content": "[SEP]", "lstrip": False}, "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(others))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> FastTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, FastTokenizer)
    return tokenizer


def test_ids_are_those_of_the_library_and_the_text_of_a_special_token_is_text(
    folder: Path, loaded: FastTokenizer
) -> None:
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [library.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert loaded.encode_batch(TEXTS) == expected
    assert [loaded.decode(ids) for ids in expected] == TEXTS
    assert loaded.mask_id in library.encode("the [MASK]", add_special_tokens=False).ids
    assert loaded.mask_id not in loaded.encode("the [MASK]")
    assert loaded.encode("a\ud800b") == loaded.encode("a\ufffdb")


def test_spans_leave_out_the_space_before_a_word(loaded: FastTokenizer) -> None:
    text = "the  cat sat"
    encoding = loaded.encode_with_offsets(text)
    assert encoding.ids == loaded.encode(text)
    shown = [text[start:end] for start, end in encoding.offsets]
    assert "".join(shown) == "thecatsat"
    assert all(part == part.strip() for part in shown)


def test_words_and_later_sentences_have_the_space_before_them(loaded: FastTokenizer) -> None:
    whole = loaded.encode("x the cat")[len(loaded.encode("x")) :]
    assert [index for ids in loaded.encode_words(["the", "cat"]) for index in ids] == whole
    sentences = loaded.encode_sentences(["the cat.", "the mat."])
    assert sentences.ids.tolist() == loaded.encode("the cat. the mat.")
    assert loaded.is_word_start[loaded.encode_words(["the"])[0][0]]
    assert loaded.is_word_start[[loaded.cls_id, loaded.encode(",")[0]]].all()


def test_a_mask_takes_the_space_before_it_as_in_the_library(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level(tmp_path, mask="<mask>"))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = library.encode("the <mask> sat on <mask>.", add_special_tokens=False).ids
    for text in ("the [MASK] sat on [MASK].", "the <mask> sat on <mask>."):
        first, *rest = tokenizer.encode_batch(tokenizer.split_at_masks(text))
        assert [*first, *(index for part in rest for index in (tokenizer.mask_id, *part))] == expected


def test_it_is_pickled_and_saved_as_it_was_read(folder: Path, loaded: FastTokenizer, tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(loaded))
    assert again.encode_batch(TEXTS) == loaded.encode_batch(TEXTS)
    loaded.save(tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert load_tokenizer(tmp_path / "out").fingerprint == loaded.fingerprint == again.fingerprint


def source_with(tokenizer: FastTokenizer) -> PretrainedModel:
    """Return a random ModernBERT with this tokenizer and a few more rows of embeddings than it has tokens."""
    random = small_source("ModernBertForMaskedLM")
    rows = tokenizer.vocab_size + 3
    flat = flatten(random.params)
    for name in ("encoder/embeddings/word_embeddings", "masked_lm/bias"):
        flat[name] = np.resize(flat[name], (rows, *flat[name].shape[1:]))
    model = dataclasses.replace(random.model, vocab_size=rows)
    return dataclasses.replace(random, params=nest(flat), model=model, tokenizer=tokenizer)


def test_a_model_with_it_is_exported_loaded_and_predicts(folder: Path, loaded: FastTokenizer, tmp_path: Path) -> None:
    source = source_with(loaded)
    out = tmp_path / "out"
    export_folder(source, out=out, report=lambda line: None)
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    fields = json.loads((out / "config.json").read_text())
    assert [fields[f"{name}_token_id"] for name in ("cls", "sep", "pad")] == [1, 2, 3]
    assert "BPE, " in (out / "README.md").read_text()
    found = load_pretrained(out)
    assert found.require_tokenizer().fingerprint == loaded.fingerprint
    predictions = Model(found).fill_mask("the [MASK] sat", top_k=3)[0]
    assert [item["token"] for item in predictions] == [loaded.pieces[item["id"]] for item in predictions]
    with pytest.raises(UserError, match="has a BPE vocabulary: give a model with a WordPiece vocabulary"):
        with_added_tokens(found, tokens=["heart"])


def test_what_cannot_be_used_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="frames texts otherwise than as"):
        load_tokenizer(byte_level(tmp_path / "frame", frame=False))
    with pytest.raises(UserError, match=r"set config\.data\.do_lower_case=False"):
        load_tokenizer(folder, do_lower_case=True)
    named = byte_level(tmp_path / "named")
    (named / "tokenizer_config.json").write_text('{"cls_token": "<start>"}')
    with pytest.raises(UserError, match=r"no special token <start>: name it in tokenizer_config\.json"):
        find_tokenizer(named)
    broken = byte_level(tmp_path / "broken")
    content = json.loads((broken / "tokenizer.json").read_text())
    content["model"]["merges"] = [["no such", "pieces"]]
    (broken / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"broken: tokenizer\.json cannot be read by the tokenizers library"):
        find_tokenizer(broken)


def test_without_the_library_the_error_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'bert_jax\[tokenizers\]'"):
        load_tokenizer(folder)
