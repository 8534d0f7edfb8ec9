"""LSTM language models: a direction each, trained alone, joined as frozen features for taggers and classifiers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_model import SPECIAL, instance_spans, random_rows, tiny_model, to_device

import bert_jax
from bert_jax.config import MaskingConfig, ModelConfig, from_config_dict
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.lstm_pair import join, load_initial
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.model.heads import PretrainingModel
from bert_jax.model.lstm.encoder import LstmEncoder, LstmPairEncoder, one_of_pair
from bert_jax.model.parameter_names import flatten
from bert_jax.pretrain.causal import CausalObjective
from bert_jax.rows.layout import encoder_inputs
from bert_jax.types import EncoderInputs
from tests.finetune_data import own_config, tokenizer, write_conll, write_sentiment
from tests.rounding import assert_rounded_alike, lstm_bound
from tests.runs import figures, run, train_command
from tests.test_finetune_run import experiment

DIRECTIONS = ("left_to_right", "right_to_left")
LENGTH = 20


def lstm_model(direction: str, **changes: Any) -> ModelConfig:
    fields = {"architecture": "lstm", "attention_direction": direction, "hidden_size": 16, "num_attention_heads": 1}
    return tiny_model(**{**fields, "hidden_dropout_prob": 0.0, **changes})


def params_of(model: ModelConfig, *, seed: int) -> Any:
    one = jnp.zeros((1, 1), jnp.int32)
    inputs = EncoderInputs(one, one, one, one)
    module = PretrainingModel(model)
    tree = jax.jit(lambda key: module.init(key, inputs, positions=one, cls_positions=one))(jax.random.key(seed))
    return jax.tree.map(np.asarray, nn.meta.unbox(tree["params"]))


def source(direction: str, *, seed: int = 0, **changes: Any) -> PretrainedModel:
    words = tokenizer()
    model = lstm_model(direction, vocab_size=words.vocab_size, **changes)
    params = params_of(model, seed=seed)
    return PretrainedModel(Path(direction), "workdir", model, "LstmForPreTraining", params, "float32", words)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_table_of_names_has_every_parameter_with_its_shape(direction: str) -> None:
    from bert_jax.model.architectures import ARCHITECTURES

    model = lstm_model(direction)
    expected = {entry.flax: entry.shape(model) for entry in ARCHITECTURES["lstm"].names.of(("encoder", "masked_lm"))}
    assert {name: leaf.shape for name, leaf in flatten(params_of(model, seed=0)).items()} == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_position_sees_its_side_of_its_instance_alone_and_predicts_the_other(direction: str) -> None:
    model = lstm_model(direction)
    objective = CausalObjective(
        model=model, masking=MaskingConfig(), special=SPECIAL, max_predictions=LENGTH, next_sentence=False
    )
    rows = random_rows(5, batch=1, length=LENGTH, instances=3)
    batch = objective.prepare(to_device(rows), key=jax.random.key(0))
    inputs = dataclasses.replace(batch.inputs, input_ids=jnp.arange(LENGTH, dtype=jnp.int32)[None] + 40)
    tree = params_of(model, seed=1)

    def states(words: jax.Array) -> jax.Array:
        encoder = {**tree["encoder"], "word_embeddings": words}
        module = PretrainingModel(model)
        return module.apply({"params": {**tree, "encoder": encoder}}, inputs, method=lambda m, i: m.encoder(i).hidden)[
            0
        ].sum(-1)

    gradients = np.asarray(jax.jit(jax.jacrev(states))(tree["encoder"]["word_embeddings"]))
    sees = np.abs(gradients[:, 40 : 40 + LENGTH]).max(-1) > 0
    segments, position = np.asarray(inputs.segment_ids)[0], np.arange(LENGTH)
    side = position[:, None] >= position[None] if direction == "left_to_right" else position[:, None] <= position[None]
    allowed = (segments[:, None] == segments[None]) & side
    real = segments > 0
    np.testing.assert_array_equal(sees[real], allowed[real])
    shift = 1 if direction == "left_to_right" else -1
    weights = np.zeros(LENGTH, bool)
    for begin, _, end in instance_spans(rows, 0):
        inside = np.arange(begin, end - 1) if shift == 1 else np.arange(begin + 1, end)
        weights[inside] = True
        np.testing.assert_array_equal(np.asarray(batch.labels)[0, inside], rows.input_ids[0, inside + shift])
    np.testing.assert_array_equal(np.asarray(batch.weights)[0] > 0, weights)


@pytest.mark.numerics
def test_a_pair_has_the_states_of_both_models_whatever_their_order() -> None:
    first, second = source("left_to_right", seed=1), source("right_to_left", seed=2)
    inputs = encoder_inputs(to_device(random_rows(1, batch=3, length=LENGTH, instances=2, vocab_size=40)))
    for sources in ([first, second], [second, first]):
        pair = join(sources, path="A,B")
        assert pair.model.hidden_size == 32
        both = jax.jit(
            lambda p, model=pair.model: LstmPairEncoder(model).apply({"params": p}, inputs, output_hidden_states=True)
        )(pair.params["encoder"])
        alone = [
            jax.jit(
                lambda p, model=one.model: LstmEncoder(model).apply({"params": p}, inputs, output_hidden_states=True)
            )(one.params["encoder"])
            for one in (first, second)
        ]
        for name in ("hidden", "all_hidden"):
            expected = np.concatenate([getattr(output, name) for output in alone], axis=-1)
            assert_rounded_alike(getattr(both, name), expected, bound=lstm_bound(32, steps=LENGTH, layers=2))
    assert one_of_pair(pair.model, direction="left_to_right") == first.model


def test_two_models_that_are_no_pair_are_refused_in_a_line() -> None:
    first = source("left_to_right")
    with pytest.raises(UserError, match=r"these are lstm left_to_right, lstm left_to_right: give two workdirs"):
        join([first, first], path="A,B")
    with pytest.raises(UserError, match="differ in shape or dropout"):
        join([first, source("right_to_left", num_hidden_layers=1)], path="A,B")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ({"attention_direction": "right_to_left"}, r"right_to_left is for --config\.model\.architecture=lstm"),
        ({"architecture": "lstm"}, "the token that it is to predict: set --config.model.attention_direction"),
    ],
)
def test_a_direction_that_an_architecture_lacks_is_refused(model: dict[str, str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        from_config_dict({"model": model, "train": {"objective": "causal"}})


@pytest.mark.slow
def test_two_runs_become_features_of_a_tagger_and_of_a_classifier(tiny_dataset: Path, tmp_path: Path) -> None:
    options = ("train.num_steps=4", "checkpoint.every=4", "eval.every=4", "log.every=2", "train.objective=causal")
    for direction in DIRECTIONS:
        changes = ("model.architecture=lstm", f"model.attention_direction={direction}")
        done = run(train_command(tmp_path / direction, *options, *changes, data=tiny_dataset))
        assert done.returncode == 0, done.stderr
        assert figures(tmp_path / direction)[-1]["eval/clm_loss"] > 0
        with pytest.raises(UserError, match="cannot be exported"):
            export_folder(bert_jax.load(tmp_path / direction).source, out=tmp_path / "out")
    path = ",".join(str(tmp_path / direction) for direction in DIRECTIONS)
    pair = load_initial(path, report=lambda line: None, exact=False)
    frozen = {"frozen_encoder": True, "bilstm_layers": 1}
    config = own_config(write_sentiment(tmp_path / "data"), model=frozen, train={"num_epochs": 1.0})
    result = experiment(tmp_path, config, source=pair, workdir="classifier").run_all()
    assert 0 <= result["best"]["best"]["metrics"]["accuracy"] <= 1
    saved = bert_jax.load(tmp_path / "classifier")
    assert saved.source.model.architecture == "lstm_pair"
    for name, leaf in flatten(pair.params).items():  # frozen: the bits of both runs
        np.testing.assert_array_equal(flatten(saved.source.params)[name], leaf)
    assert set(saved.classify("a good film")["probabilities"]) == {"good", "bad"}
    ner = {"directory": str(write_conll(tmp_path / "ner")), "max_seq_length": 32}
    tagging = {"task": "ner", "data": ner, "ner": {"features": "sum_all", "bilstm_hidden_size": 8, "bilstm_layers": 1}}
    from bert_jax.config.finetuning import from_config_dict as finetune_config

    tagger = finetune_config({**tagging, "train": {"batch_size": 4, "num_epochs": 1.0}})
    assert open_config_task(tagger).name == "ner"
    result = experiment(tmp_path, tagger, source=pair, workdir="tagger").run_all()
    assert result["features"] == "sum_all"
