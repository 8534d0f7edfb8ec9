"""`finetune --add_tokens`: new tokens are kept whole, get rows of their own, and travel with the model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bert_jax.convert.added_rows import with_added_tokens
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from tests.finetune_data import own_config, tiny_source, write_jsonl, write_source
from tests.rounding import assert_rounded_alike, sum_bound


@pytest.mark.numerics
def test_a_new_token_is_whole_and_begins_as_the_mean_of_its_parts(tmp_path: Path):
    source = tiny_source(tmp_path)
    old = source.require_tokenizer()
    said: list[str] = []
    model = with_added_tokens(source, tokens=["[E1]", "film", "<x>"], report=said.append)
    tokens, size = model.require_tokenizer(), old.vocab_size
    assert tokens.convert_ids_to_pieces(tokens.encode("the [E1] film<x>")) == ["the", "[E1]", "film", "<x>"]
    assert tokens.encode("[E1] <x>") == [size, size + 1]
    assert tokens.encode("film") == old.encode("film")
    rows = model.params["encoder"]["embeddings"]["word_embeddings"]
    before = source.params["encoder"]["embeddings"]["word_embeddings"]
    assert (rows.shape[0], model.model.vocab_size) == (size + 2, size + 2)
    parts = before[old.encode("[E1]")]
    bound = sum_bound(len(parts), size=float(np.abs(parts).max()))
    assert_rounded_alike(rows[size], parts.mean(0, dtype=np.float64), bound=bound)
    np.testing.assert_array_equal(rows[:size], before)
    assert said == [f"--add_tokens: 2 new tokens; vocab_size {size} -> {size + 2}"]
    with pytest.raises(UserError, match="token '<x>': it is repeated"):
        with_added_tokens(source, tokens=["<x>", "<y>", "<x>"])
    for bad, match in (("[MASK]", "one of BERT's special tokens"), (" ", "it is empty"), ("a b ", "white space")):
        with pytest.raises(UserError, match=match):
            with_added_tokens(source, tokens=[bad])


@pytest.mark.slow
def test_added_tokens_are_in_the_workdir_and_the_export(tmp_path: Path):
    rows = [{"text": f"the {token} film", "label": label} for token, label in (("[E1]", "a"), ("[E2]", "b"))] * 4
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    config = own_config(tmp_path, train={"num_epochs": 1.0, "batch_size": 8})
    source = write_source(tmp_path / "source")
    request = finetune.Request(init=str(source), workdir=str(tmp_path / "work"), add_tokens=("[E1]", "[E2]"))
    finetune.finetune(config, request=request)
    model = load_pretrained(tmp_path / "work", report=lambda line: None)
    export_folder(model, out=tmp_path / "folder", report=lambda line: None)
    again = load_pretrained(tmp_path / "folder", report=lambda line: None)
    for loaded in (model, again):
        tokenizer = loaded.require_tokenizer()
        assert tokenizer.convert_ids_to_pieces(tokenizer.encode("the [E2] film")) == ["the", "[E2]", "film"]
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["vocab_size"] == tokenizer.vocab_size
    with pytest.raises(UserError, match="its runs have weights"):
        finetune.finetune(config, request=dataclasses.replace(request, add_tokens=("[E1]",)))
