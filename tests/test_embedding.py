"""`embed` gives what sentence-transformers gives: pooling, layers, length, casing, prompt and scale of its files."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from source_helpers import SMALL_TEST, random_source

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.safetensors_file import write_safetensors
from bert_jax.convert.sentence_transformers import POOLINGS, EmbeddingSettings
from bert_jax.errors import UserError
from bert_jax.prediction.embedding import pool
from bert_jax.prediction.model import Model, load
from tests.rounding import assert_rounded_alike, encoder_bound, sum_bound
from tests.runs import run

# `features` prints six decimals.
BOUND = encoder_bound(SMALL_TEST) + 0.5e-6
TEXTS = ["the cat sat on the mat .", "it was not", "the red dog ran to the blue house , and in the house it sat"]


def quiet(line: str) -> None:
    del line


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "out"
    export_folder(random_source("small-test", architecture="BertModel"), out=folder, report=quiet)
    return folder


def sentence_folder(
    encoder: Path,
    folder: Path,
    *,
    pooling: dict[str, Any],
    modules: tuple[tuple[str, str], ...] = (),
    inner: str = "",
    **files: Any,
) -> Path:
    """Write a sentence-transformers folder around an encoder, which is in the folder `inner` of it."""
    shutil.copytree(encoder, folder / inner)
    listed = [(inner, "Transformer"), ("1_Pooling", "Pooling"), *modules]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    for name, value in files.items():
        (folder / inner / f"{name}.json").write_text(json.dumps(value))
    return folder


def hidden_states(encoder: Path, text: str, *, max_length: int = 32) -> np.ndarray:
    """Return the states [T, D] of one text of at most `max_length` tokens, without any pooling of ours."""
    model = load(encoder, report=quiet)
    ids = model.tokenizer.encode(text)[: max_length - 2]
    shortened = model.tokenizer.decode(ids)
    assert model.tokenizer.encode(shortened) == ids
    return np.array(model.features(shortened)["features"]["last"])


def expected(states: np.ndarray, mode: str) -> np.ndarray:
    """Return the formulas of sentence_transformers/modules/pooling.py for one text without padding."""
    count = len(states)
    weights = np.arange(1, count + 1)[:, None]
    return {
        "cls": states[0],
        "max": states.max(0),
        "mean": states.sum(0) / count,
        "mean_sqrt_len_tokens": states.sum(0) / np.sqrt(count),
        "weightedmean": (states * weights).sum(0) / weights.sum(),
        "lasttoken": states[-1],
    }[mode]


@pytest.mark.numerics
@pytest.mark.parametrize("mode", POOLINGS)
def test_each_pooling_is_the_formula_of_sentence_transformers(encoder, tmp_path, mode):
    folder = sentence_folder(encoder, tmp_path / "st", pooling={"pooling_mode": mode})
    actual = load(folder, report=quiet).embed(TEXTS)  # batched, so two of the three are padded
    for text, vector in zip(TEXTS, actual, strict=True):
        states = hidden_states(encoder, text)
        times = np.sqrt(len(states)) if mode == "mean_sqrt_len_tokens" else 1.0  # as large as a mean
        assert_rounded_alike(vector, expected(states, mode), bound=BOUND * times)


@pytest.mark.numerics
def test_old_fields_of_several_poolings_are_concatenated_in_their_order(encoder, tmp_path):
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    folder = sentence_folder(encoder, tmp_path / "st", pooling=pooling)
    states = hidden_states(encoder, TEXTS[0])
    both = np.concatenate([expected(states, "cls"), expected(states, "mean")])
    model = load(folder, report=quiet)
    assert_rounded_alike(model.embed(TEXTS[0]), both, bound=BOUND)
    assert model.embed([]).shape == (0, 16)


@pytest.mark.numerics
def test_the_length_of_the_settings_cuts_texts(encoder, tmp_path):
    settings = {"max_seq_length": 7}
    folder = sentence_folder(encoder, tmp_path / "st", pooling={}, sentence_bert_config=settings)
    states = hidden_states(encoder, TEXTS[2], max_length=7)
    assert len(states) == 7
    assert_rounded_alike(load(folder, report=quiet).embed(TEXTS[2]), states.mean(0), bound=BOUND)
    assert np.abs(load(encoder, report=quiet).embed(TEXTS[2], normalize=False) - states.mean(0)).max() > 1e-3


@pytest.mark.numerics
def test_the_normalization_module_decides_the_scale(encoder, tmp_path):
    plain = load(sentence_folder(encoder, tmp_path / "a", pooling={}), report=quiet)
    scaled = load(sentence_folder(encoder, tmp_path / "b", pooling={}, modules=(("", "Normalize"),)), report=quiet)
    length = np.linalg.norm(plain.embed(TEXTS[0]))
    assert abs(length - 1) > 1e-3
    assert_rounded_alike(scaled.embed(TEXTS[0]), plain.embed(TEXTS[0]) / length, bound=BOUND / length)
    assert_rounded_alike(plain.embed(TEXTS[0], normalize=True), scaled.embed(TEXTS[0]), bound=BOUND / length)


@pytest.mark.numerics
def test_dense_layers_prompt_and_lower_casing_are_applied(encoder, tmp_path):
    folder = sentence_folder(
        encoder,
        tmp_path / "st",
        pooling={},
        modules=(("2_Dense", "Dense"),),
        sentence_bert_config={"do_lower_case": True},
    )
    prompts = {"prompts": {"query": "the cat "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(
        json.dumps({"in_features": 8, "out_features": 3, "activation_function": "torch.nn.modules.activation.Tanh"})
    )
    generator = np.random.default_rng(0)
    weight, bias = (generator.standard_normal(shape).astype(np.float32) for shape in ((3, 8), (3,)))
    write_safetensors(folder / "2_Dense" / "model.safetensors", {"linear.weight": weight, "linear.bias": bias})
    mean = hidden_states(encoder, "the cat sat on").mean(0)
    actual = load(folder, report=quiet).embed(["SAT on"])
    bound = BOUND * float(np.abs(weight).sum(1).max())
    assert_rounded_alike(actual[0], np.tanh(weight @ mean + bias), bound=bound)


@pytest.mark.numerics
def test_the_old_layout_is_read_from_either_folder(encoder, tmp_path):
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    folder = sentence_folder(encoder, tmp_path / "st", pooling=pooling, inner="0_Transformer")
    (folder / "config.json").write_text('{"__version__": "0.2.4"}')
    lines: list[str] = []
    outer, inner = load(folder, report=lines.append), load(folder / "0_Transformer", report=quiet)
    assert lines == [f"{folder}: a sentence-transformers folder, whose model is in 0_Transformer/"]
    assert_rounded_alike(outer.embed(TEXTS[0]), expected(hidden_states(encoder, TEXTS[0]), "cls"), bound=BOUND)
    np.testing.assert_array_equal(outer.embed(TEXTS[0]), inner.embed(TEXTS[0]))


def test_a_module_that_is_not_computed_is_named_and_a_pooling_can_be_chosen(encoder, tmp_path):
    folder = sentence_folder(encoder, tmp_path / "st", pooling={}, modules=(("2_LSTM", "LSTM"),))
    model = load(folder, report=quiet)
    with pytest.raises(UserError, match=r"its module 2_LSTM \(LSTM\), which is not computed here: type --pooling=mean"):
        model.embed(TEXTS)
    assert model.embed(TEXTS, pooling="mean").shape == (3, 8)
    with pytest.raises(UserError, match="choose from mean, cls"):
        model.embed(TEXTS, pooling="mean+median")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("modules.json", "{}", "must be a list of modules"),
        ("modules.json", '[{"path": "../x", "type": "Transformer"}]', "must be a list of modules"),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}', "max_seq_length is long"),
        ("config_sentence_transformers.json", '{"default_prompt_name": ["a"]}', "default_prompt_name must be"),
    ],
)
def test_a_damaged_setting_is_one_line(encoder, tmp_path, name, content, told):
    folder = sentence_folder(encoder, tmp_path / "st", pooling={})
    (folder / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load(folder, report=quiet)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pooling", [{"pooling_mode": "median"}, {"include_prompt": False}])
def test_a_pooling_that_is_not_computed_stops_only_embeddings(encoder, tmp_path, pooling):
    model = load(sentence_folder(encoder, tmp_path / "st", pooling=pooling), report=quiet)
    with pytest.raises(UserError, match=r"1_Pooling \((pooling_mode median|include_prompt=false)\)"):
        model.embed(TEXTS)
    assert model.embed(TEXTS, pooling="mean").shape == (3, 8)


@pytest.mark.parametrize("content", ["{}", '["a"]', "damaged"])
def test_a_foreign_file_in_the_parent_folder_is_ignored(encoder, tmp_path, content):
    shutil.copytree(encoder, tmp_path / "model")
    (tmp_path / "modules.json").write_text(content)
    assert load_pretrained(tmp_path / "model", report=quiet).embedding is None


def test_an_export_keeps_the_settings(encoder, tmp_path):
    settings = EmbeddingSettings(poolings=("cls", "max"), max_seq_length=9, lowercase=True, prompt="query: ")
    source = dataclasses.replace(load_pretrained(encoder), embedding=settings)
    export_folder(source, out=tmp_path / "out", sentence_transformers=True, report=quiet)
    assert load_pretrained(tmp_path / "out").embedding == settings


@pytest.mark.numerics
def test_the_command_says_which_settings_it_follows(encoder, tmp_path):
    folder = sentence_folder(encoder, tmp_path / "st", pooling={"pooling_mode": "cls"})
    command = [sys.executable, "-m", "bert_jax.predict", f"--model={folder}", "--task=embed", "--input=-"]
    done = run(command, text='{"text": "the cat"}\n')
    assert "settings of sentence-transformers: pooling cls, not normalized, at most 32 tokens" in done.stderr
    vector = json.loads(done.stdout)["embedding"]
    assert_rounded_alike(vector, Model(load_pretrained(folder)).embed("the cat"), bound=BOUND)


@pytest.mark.numerics
def test_padding_is_never_pooled():
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 4)), jnp.float32)
    real = jnp.asarray([[1, 1, 1, 0, 0, 0]], jnp.float32)
    for mode in POOLINGS:
        alone = pool(hidden[:, :3], real[:, :3], pooling=mode)
        changed = pool(hidden.at[:, 3:].set(1e3), real, pooling=mode)
        assert_rounded_alike(changed, alone, bound=sum_bound(6, size=float(np.abs(hidden).max())))
