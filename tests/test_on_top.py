"""What fine-tuning puts on an encoder: a BiLSTM for every kind of task, a frozen encoder, models that have them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bert_jax
from bert_jax.config import TaskModelConfig
from bert_jax.config.finetuning import from_config_dict
from bert_jax.convert.export_folder import export_folder
from bert_jax.errors import UserError
from bert_jax.finetuning.initial import task_model
from bert_jax.finetuning.objective import TaskObjective
from bert_jax.finetuning.prediction import load_outputs
from bert_jax.kinds.base import softmax
from bert_jax.kinds.table import KINDS
from bert_jax.model.parameter_names import flatten
from bert_jax.types import EncoderInputs
from tests.finetune_data import own_config, tiny_model, tiny_source, write_sentiment
from tests.rounding import assert_rounded_alike, encoder_bound, lstm_bound
from tests.test_finetune_run import experiment
from tests.test_task_heads import random_features, rows_of, sized

MODEL = TaskModelConfig(**{**dataclasses.asdict(tiny_model()), "bilstm_layers": 1})


@pytest.mark.numerics
@pytest.mark.parametrize("kind", KINDS)
def test_a_bilstm_sees_the_instance_alone_whatever_is_packed_around_it(kind: str) -> None:
    objective = TaskObjective(MODEL, kind=sized(kind))
    one = jnp.zeros((1, 1), jnp.int32)
    module = sized(kind).model(MODEL)
    tree = jax.jit(lambda: module.init(jax.random.key(1), EncoderInputs(one, one, one, one), pooled_positions=one))()
    params = nn.meta.unbox(tree["params"])
    assert params["bilstm"]["forward_0"]["hi"]["kernel"].shape == (16, 16)
    features = random_features(kind, examples=3)

    @jax.jit
    def loss(rows: Any) -> jax.Array:
        batch = objective.prepare(rows, key=jax.random.key(0))
        return objective.loss(params, batch=batch, weights={"examples": jnp.float32(1)}, key=None)[0]

    packed = rows_of(features, [0, 1, 2], kind=kind, length=192, per_row=4)
    assert packed.input_ids.shape[0] < 3
    parts = [float(loss(rows_of(features, [e], kind=kind, length=192, per_row=1))) for e in range(3)]
    bound = encoder_bound(MODEL) + lstm_bound(32 + 16, steps=80, layers=1)  # four choices of at most 20 tokens
    assert_rounded_alike(float(loss(packed)), sum(parts), bound=bound * max(1.0, sum(parts)))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    tmp_path = tmp_path_factory.mktemp("on_top")
    config = own_config(
        write_sentiment(tmp_path / "data"),
        model={"frozen_encoder": True, "bilstm_layers": 1},
        train={"num_epochs": 5.0},
        optimizer={"learning_rate": 2e-2},
    )
    return tmp_path / "work", experiment(tmp_path, config).run_all()


@pytest.mark.slow
def test_a_bilstm_on_a_frozen_encoder_learns_and_leaves_the_encoder_alone(tuned: tuple[Path, dict[str, Any]]) -> None:
    workdir, result = tuned
    assert result["best"]["best"]["metrics"]["accuracy"] > result["constant"]
    before = flatten(tiny_source(workdir / "source").params)
    after = flatten(bert_jax.load(workdir).source.params)
    encoder = [name for name in before if name.startswith("encoder/")]
    assert encoder
    for name in encoder:
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.slow
@pytest.mark.numerics
def test_predictions_are_those_of_the_run(tuned: tuple[Path, dict[str, Any]]) -> None:
    workdir, result = tuned
    model = bert_jax.load(workdir)
    assert "bilstm" in model.source.parts
    dev = [json.loads(line) for line in (workdir.parent / "data" / "dev.jsonl").read_text().splitlines()]
    outputs = load_outputs(workdir / "runs" / result["best"]["name"] / "outputs-dev.npz")
    answers = model.classify([row["text"] for row in dev])
    # The BiLSTM has 16 states for each direction, on top of 32 of the encoder, for texts of at most 11 tokens.
    bound = encoder_bound(MODEL) + lstm_bound(32 + 16, steps=11, layers=1)
    for answer, output in zip(answers, outputs, strict=True):
        assert_rounded_alike(list(answer["probabilities"].values()), softmax(output), bound=bound)


@pytest.mark.slow
def test_a_model_with_a_bilstm_is_not_exported_without_it(tuned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    model = bert_jax.load(tuned[0])
    with pytest.raises(UserError, match=r"has a BiLSTM .*--drop=bilstm,pooler,classifier"):
        export_folder(model.source, out=tmp_path / "out")
    config = own_config(tmp_path)
    with pytest.raises(UserError, match=r"set --config\.model\.bilstm_layers=1"):
        task_model(model.source, config=config)


def test_two_bilstms_and_odd_widths_are_refused(tmp_path: Path) -> None:
    for name, value in (("bilstm_layers", 1), ("frozen_encoder", True)):
        with pytest.raises(UserError, match=rf"config\.model\.{name}=.*leave one of them out"):
            from_config_dict({"task": "ner", "ner": {"features": "last"}, "model": {name: value}})
        with pytest.raises(UserError, match=rf"config\.model\.{name}=.*the encoder's own states"):
            from_config_dict({"task": "embed", "model": {name: value}})
    source = dataclasses.replace(tiny_source(tmp_path), model=tiny_model(hidden_size=33, num_attention_heads=1))
    with pytest.raises(UserError, match=r"config\.model\.bilstm_layers=1: the width 33"):
        task_model(source, config=own_config(tmp_path, model={"bilstm_layers": 1}))
