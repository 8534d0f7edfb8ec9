"""Continued pre-training: the run takes shape and vocabulary from the SOURCE, and says what it gained."""

import dataclasses
import json

import jax
import pytest
from source_helpers import random_source, vocabulary

from bert_jax.config import Config, DataConfig, PhaseConfig, TrainConfig
from bert_jax.convert.loading import initial_params
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.data.vocabulary import Vocabulary, save_vocabulary
from bert_jax.errors import UserError
from bert_jax.model.parameter_names import flatten
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.continuing import adopt_source, perplexity_before_and_after, save_vocabulary_of
from bert_jax.pretrain.program import PretrainingProgram


def config(length: int = 16, **data) -> Config:
    train = TrainConfig(num_steps=20_000, batch_size=8, phases=(PhaseConfig(max_seq_length=length),))
    return Config(data=DataConfig(input="embedded", **data), train=train)


def quiet(line: str) -> None:
    del line


def test_shape_and_vocabulary_come_from_the_source_and_the_way_of_computing_stays(tmp_path):
    source = random_source("small-test", hidden_act="gelu")
    adopted = adopt_source(config(), source=source, workdir=tmp_path, report=quiet)
    assert adopted.model == dataclasses.replace(source.model, dtype="bfloat16")
    save_vocabulary_of(source, workdir=tmp_path)
    tokenizer = load_tokenizer(adopted.data.vocab)
    assert tokenizer.fingerprint == source.require_tokenizer().fingerprint
    assert adopted.data.do_lower_case == tokenizer.do_lower_case
    again = adopt_source(config(), source=source, workdir=tmp_path, report=quiet)
    assert again == adopted  # so that the same command resumes


def test_parameters_fit_the_state_that_training_begins_from(tmp_path):
    source = random_source("small-test", architecture="BertForMaskedLM")
    adopted = adopt_source(config(), source=source, workdir=tmp_path, report=quiet)
    params = initial_params(source, model=adopted.model, init_missing=["pooler", "next_sentence"])
    expected = PretrainingProgram(adopted, mesh=meshes.make_mesh(adopted.mesh)).abstract_state().params
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )
    assert flatten(params)["masked_lm/bias"] is source.params["masked_lm"]["bias"]


def test_rows_longer_than_the_position_table_are_refused(tmp_path):
    with pytest.raises(UserError, match="max_position_embeddings=32"):
        adopt_source(config(64), source=random_source("small-test"), workdir=tmp_path, report=quiet)


def test_another_vocabulary_is_refused_by_both_names(tmp_path):
    other = Vocabulary((*vocabulary().pieces, "more"), do_lower_case=True)
    save_vocabulary(other, directory=tmp_path / "other")
    with pytest.raises(UserError, match="is not the vocabulary of --init="):
        adopt_source(
            config(vocab=str(tmp_path / "other")), source=random_source("small-test"), workdir=tmp_path, report=quiet
        )


def test_perplexity_before_and_after_is_that_of_the_first_and_last_evaluation(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "eval/mlm_loss": 3.0}, {"step": 5, "train/loss": 1.0}, {"step": 9, "eval/mlm_loss": 2.0}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert perplexity_before_and_after(file) == "held-out perplexity before (step 0) 20.1, after (step 9) 7.4"
    known = [{**line, "eval/bits_per_byte": line["eval/mlm_loss"] / 2} for line in (lines[0], lines[2])]
    file.write_text("".join(json.dumps(line) + "\n" for line in known))
    assert perplexity_before_and_after(file).endswith("after (step 9) 7.4; bits per byte 1.500, 1.000")
    file.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(UserError, match="two are needed"):
        perplexity_before_and_after(file)
