"""The config: defaults, presets, and one clear line for everything that is wrong."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from ml_collections import ConfigDict

from bert_jax import config as configs
from bert_jax.config import Config, ModelConfig, PhaseConfig, default_config, flatten, from_config_dict, phase
from bert_jax.config.builder import leaf_fields
from bert_jax.config.fields import info
from bert_jax.errors import UserError


def changed(path: str, value: Any) -> ConfigDict:
    """Return the default config with one field changed, as the command line does it but without its type check."""
    raw = default_config().to_dict()
    group: Any = raw
    *parents, leaf = path.split(".")
    for name in parents:
        group = group[name]
    group[leaf] = value
    return ConfigDict(raw)


def message(config: Any) -> str:
    """Return the line with which `config` is refused."""
    with pytest.raises(UserError) as caught:
        from_config_dict(config)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_default_config_is_the_dataclass_default() -> None:
    follows_the_data = dataclasses.replace(Config().model, vocab_size=0)
    assert from_config_dict(default_config()) == dataclasses.replace(Config(), model=follows_the_data)
    assert from_config_dict({}) == Config()


def test_defaults_are_the_papers_procedure() -> None:
    config = Config()
    assert (config.train.batch_size, config.train.num_steps) == (256, 1_000_000)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.weight_decay) == (1e-4, 10_000, 0.01)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon, optimizer.max_grad_norm) == (0.9, 0.999, 1e-6, 1.0)
    assert [(p.fraction, p.max_seq_length) for p in config.train.phases] == [(0.9, 128), (0.1, 512)]
    assert config.model.hidden_dropout_prob == config.model.attention_probs_dropout_prob == 0.1
    masking = config.masking
    assert (masking.rate, masking.mask_share, masking.random_share, masking.same_share) == (0.15, 0.8, 0.1, 0.1)


def test_a_config_survives_json() -> None:
    config = from_config_dict(changed("train.phases", (phase(fraction=0.25), phase(fraction=0.75, learning_rate=1e-3))))
    assert from_config_dict(json.loads(configs.to_json(config))) == config


def test_config_is_hashable_and_frozen() -> None:
    assert hash(Config()) == hash(Config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


def test_flatten_names_every_leaf_by_its_path() -> None:
    leaves = flatten(Config())
    assert leaves["model.hidden_size"] == 768
    assert leaves["train.phases[1].max_seq_length"] == 512
    assert leaves["seed"] == 0
    assert not any(isinstance(value, (dict, list, tuple)) for value in leaves.values())
    groups = {f.name: getattr(Config(), f.name) for f in dataclasses.fields(Config)}
    groups = {name: value for name, value in groups.items() if dataclasses.is_dataclass(value)}
    assert {"model", "data", "masking", "optimizer", "mesh", "train", "checkpoint", "eval", "log"} <= groups.keys()
    for name, group in groups.items():
        for field in dataclasses.fields(group):
            assert any(re.match(rf"{name}\.{field.name}(\[|$)", leaf) for leaf in leaves), field.name


@pytest.mark.parametrize(
    ("path", "value", "suggestion"),
    [
        ("model.hidden_sise", 128, "config.model.hidden_size"),
        ("optimizer.learning_rte", 1e-3, "config.optimizer.learning_rate"),
        ("trian", {}, "config.train"),
        ("masking.mask", 0.5, "mask_share"),
    ],
)
def test_unknown_field_is_named_with_the_nearest_known_one(path: str, value: Any, suggestion: str) -> None:
    text = message(changed(path, value))
    assert f"config.{path}: no such field" in text
    assert suggestion in text


def test_unknown_field_of_a_phase_is_named_with_its_index() -> None:
    entries = [dataclasses.asdict(PhaseConfig(fraction=0.5)), {"fraction": 0.5, "max_seq_len": 64}]
    text = message({"train": {"phases": entries}})
    assert "config.train.phases[1].max_seq_len" in text
    assert "max_seq_length" in text


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("model.hidden_size", 768.0, "int"),
        ("model.hidden_size", "768", "int"),
        ("model.hidden_size", True, "int"),
        ("model.hidden_size", None, "int"),
        ("model.scan_layers", 1, "bool"),
        ("model.scan_layers", "false", "bool"),
        ("optimizer.learning_rate", "1e-4", "float"),
        ("optimizer.learning_rate", False, "float"),
        ("recipe", 3, "str"),
        ("data.input", None, "str"),
    ],
)
def test_wrong_type_is_named_with_the_right_one(path: str, value: Any, kind: str) -> None:
    raw = from_raw(path, value)
    text = message(raw)
    assert f"config.{path}: expected {kind}" in text
    assert repr(value) in text


def from_raw(path: str, value: Any) -> dict[str, Any]:
    """Return a nested mapping that holds one field; `name[0]` is the first item of a list."""
    for name in reversed(path.split(".")):
        value = {name.removesuffix("[0]"): [value] if name.endswith("[0]") else value}
    return value


@pytest.mark.parametrize(("path", "value"), [("model", 3), ("model", "base"), ("train.phases", 3), ("mesh", None)])
def test_a_group_given_as_a_value_is_refused(path: str, value: Any) -> None:
    assert f"config.{path}: expected a" in message(from_raw(path, value))


@pytest.mark.parametrize("phases", ["128", [128], [[0.9, 128]], {"fraction": 1.0}])
def test_phases_that_are_no_list_of_groups_are_refused(phases: Any) -> None:
    assert "config.train.phases" in message({"train": {"phases": phases}})


def test_whole_numbers_serve_as_floats() -> None:
    config = from_config_dict({"optimizer": {"weight_decay": 0, "max_grad_norm": 2}})
    assert config.optimizer.max_grad_norm == 2.0
    assert isinstance(config.optimizer.max_grad_norm, float)


# What a choice needs next to it.
NEEDED = {
    "train.objective=causal": {"model.attention_direction": "left_to_right"},
    "train.phases[0].objective=causal": {"train.objective": "mlm"},
    "model.attention_direction=left_to_right": {"train.objective": "causal"},
    "model.attention_direction=right_to_left": {"train.objective": "causal", "model.architecture": "lstm"},
    "model.classifier_pooling=mean": {"model.architecture": "modernbert"},
}


@pytest.mark.parametrize("path", list(configs.CHOICES))
def test_every_choice_is_accepted_and_any_other_refused_with_the_list(path: str) -> None:
    for choice in configs.CHOICES[path]:
        raw = from_raw(path, choice)
        if choice not in ("adamw", "stable_adamw", "muon", "wsd"):  # contradict the original recipe only
            raw = {**raw, "recipe": raw.get("recipe", "original")}
        if owner := info(leaf_fields(Config)[path]).architecture:  # others refuse its fields
            raw["model"]["architecture"] = owner
        for field, value in NEEDED.get(f"{path}={choice}", {}).items():
            group, name = field.split(".")
            raw[group] = {**raw.get(group, {}), name: value}
        assert flatten(from_config_dict(raw))[path] == choice
    text = message(from_raw(path, "nonsense"))
    assert f"config.{path}='nonsense'" in text
    for choice in configs.CHOICES[path]:
        assert choice in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.vocab_size", -1),
        ("model.hidden_size", -8),
        ("model.num_hidden_layers", 0),
        ("model.num_attention_heads", 0),
        ("model.layer_norm_eps", 0.0),
        ("model.hidden_dropout_prob", 1.5),
        ("model.hidden_dropout_prob", -0.1),
        ("masking.rate", 1.01),
        ("masking.rate", math.nan),
        ("data.short_seq_prob", -0.5),
        ("data.heldout_fraction", 0.95),
        ("optimizer.learning_rate", -1e-4),
        ("optimizer.warmup_steps", -1),
        ("optimizer.max_grad_norm", -1.0),
        ("optimizer.beta2", 1.1),
        ("train.num_steps", 0),
        ("train.batch_size", 0),
        ("train.batch_size", -256),
        ("train.gradient_accumulation_steps", 0),
        ("checkpoint.every", 0),
        ("checkpoint.keep_latest", 0),
        ("checkpoint.keep_every", -1),
        ("eval.every", 0),
        ("eval.max_examples", 0),
        ("log.every", 0),
        ("mesh.data", 0),
        ("mesh.fsdp", -2),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(path: str, value: Any) -> None:
    assert f"config.{path}" in message(from_raw(path, value))


# Each of these divides by zero or makes every parameter NaN if it gets past the config.
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.hidden_dropout_prob", 1.0),
        ("model.attention_probs_dropout_prob", 1.0),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", 1.0),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.learning_rate", math.inf),
        ("optimizer.weight_decay", math.nan),
        ("optimizer.epsilon", math.nan),
        ("optimizer.max_grad_norm", math.nan),
        ("model.initializer_range", math.inf),
    ],
)
def test_a_value_that_cannot_train_is_refused_by_name(path: str, value: Any) -> None:
    assert f"config.{path}" in message(from_raw(path, value))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"model": {"hidden_size": 100, "num_attention_heads": 12}}, ["num_attention_heads=12", "hidden_size=100"]),
        ({"masking": {"mask_share": 0.9}}, ["config.masking", "must be 1", "1.1"]),
        ({"train": {"phases": []}}, ["config.train.phases", "phase("]),
        ({"train": {"phases": [{"fraction": 0.9}]}}, ["config.train.phases", "0.9"]),
        (
            {"train": {"phases": [{"max_seq_length": 512}]}, "model": {"max_position_embeddings": 128}},
            ["config.train.phases[0].max_seq_length=512", "config.model.max_position_embeddings=128"],
        ),
        (
            {"train": {"phases": [{"max_seq_length": 64, "max_predictions_per_seq": 65}]}},
            ["config.train.phases[0].max_predictions_per_seq=65", "max_seq_length=64"],
        ),
        ({"train": {"gradient_accumulation_steps": 3}}, ["config.train.gradient_accumulation_steps=3", "256"]),
        (
            {"train": {"gradient_accumulation_steps": 4, "phases": [{"batch_size": 30}]}},
            ["config.train.gradient_accumulation_steps=4", "30"],
        ),
        ({"recipe": "original", "optimizer": {"name": "adamw"}}, ["config.optimizer.name=adamw", "config.recipe"]),
        ({"recipe": "original", "optimizer": {"name": "muon"}}, ["config.optimizer.name=muon", "config.recipe"]),
        ({"recipe": "original", "optimizer": {"schedule": "wsd"}}, ["config.optimizer.schedule=wsd", "config.recipe"]),
        ({"optimizer": {"decay_steps": 5}}, ["config.optimizer.decay_steps=5", "schedule=wsd"]),
        ({"optimizer": {"clip_replicas": 2, "max_grad_norm": 0.0}}, ["clip_replicas=2", "max_grad_norm"]),
        (
            {"model": {"attention_implementation": "pallas", "num_attention_heads": 6}},
            ["config.model.attention_implementation=pallas", "6 heads of size 128"],
        ),
        (
            {
                "model": {"attention_implementation": "pallas"},
                "train": {"phases": [{"max_seq_length": 64}]},
            },
            ["config.model.attention_implementation=pallas", "not 64"],
        ),
        ({"mesh": {"data": -1, "fsdp": -1}}, ["config.mesh", "-1"]),
        ({"profile": {"steps": "10"}}, ["config.profile.steps='10'", "10:15"]),
        ({"profile": {"steps": "ten:15"}}, ["config.profile.steps", "10:15"]),
    ],
)
def test_an_impossible_combination_is_refused_by_name(raw: dict[str, Any], words: list[str]) -> None:
    text = message(raw)
    for word in words:
        assert word in text


def test_shares_of_appendix_c2_are_accepted_in_spite_of_rounding() -> None:
    for shares in ((0.8, 0.1, 0.1), (1, 0, 0), (0.8, 0, 0.2), (0.8, 0.2, 0), (0, 0.2, 0.8), (0, 0, 1), (0.7, 0.2, 0.1)):
        mask, same, random = shares
        raw = {"masking": {"mask_share": mask, "same_share": same, "random_share": random}}
        assert from_config_dict(raw).masking.mask_share == mask


def test_ten_phases_of_a_tenth_are_accepted_in_spite_of_rounding() -> None:
    assert len(from_config_dict({"train": {"phases": [{"fraction": 0.1}] * 10}}).train.phases) == 10


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("tiny", (2, 128, 2)),
        ("mini", (4, 256, 4)),
        ("small", (4, 512, 8)),
        ("medium", (8, 512, 8)),
        ("base", (12, 768, 12)),
        ("large", (24, 1024, 16)),
        ("L-6_H-768_A-3", (6, 768, 3)),
        ("L-3_H-768", (3, 768, 12)),
    ],
)
def test_presets_have_the_published_shape(name: str, shape: tuple[int, int, int]) -> None:
    model = from_config_dict(default_config(model=name)).model
    assert (model.num_hidden_layers, model.hidden_size, model.num_attention_heads) == shape
    assert model.intermediate_size == 4 * model.hidden_size
    assert model.vocab_size == 0  # that of the data


@pytest.mark.parametrize("name", ["huge", "L-6_H-", "L6_H768_A12", ""])
def test_an_unknown_preset_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UserError, match="tiny, mini, small, medium, base, large"):
        default_config(model=name)


def test_a_preset_without_heads_has_heads_of_64() -> None:
    with pytest.raises(UserError, match="'L-2_H-100': 100 is not a multiple of 64: add the number of heads, as in"):
        default_config(model="L-2_H-100")


def test_a_preset_that_cannot_be_is_refused_as_a_config() -> None:
    assert "config.model.num_attention_heads" in message(default_config(model="L-2_H-128_A-0"))
    assert "config.model.num_attention_heads=3" in message(default_config(model="L-2_H-128_A-3"))


def test_model_config_defaults_are_base() -> None:
    assert configs.model_preset("base") == ModelConfig()


def test_a_run_that_asked_for_cudnn_is_read_as_auto():
    record = {"model": {"attention_implementation": "cudnn", "hidden_size": 128, "num_attention_heads": 2}}
    assert configs.from_saved(record).model.attention_implementation == "auto"
    with pytest.raises(UserError, match="choose one of auto, reference, pallas"):
        configs.from_config_dict(record)
