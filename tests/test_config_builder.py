"""One builder for any config: what a field takes is said at the field, and suggestions are the config's own fields."""

import dataclasses
from typing import Any

import pytest

from bert_jax.config import Config, builder
from bert_jax.config.fields import field, group, info, optional_group
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Loop:
    every: int = field(10, above=0, unit="steps", doc="Steps from one to the next.")
    rates: tuple[float, ...] = field((0.5,), at_least=0, below=1, doc="Some fractions.")


@dataclasses.dataclass(frozen=True)
class Free:
    every: int = 10  # no metadata at all
    seed: int = field(0, doc="Any number.")


@dataclasses.dataclass(frozen=True)
class Extra:
    mode: str = field("", choices=("", "fast"), doc="How.")


@dataclasses.dataclass(frozen=True)
class Toy:
    every: int = field(3, at_least=3, at_most=5, doc="A few.")
    rest: int = field(-1, at_least=1, also=(-1, "the rest"), doc="A number or the rest.")
    loop: Loop = group(Loop, doc="Checked.")
    quiet: Loop = group(Loop, every=1000, doc="Checked, with another default.")
    free: Free = group(Free, doc="Not checked.")
    extra: Extra | None = optional_group(doc="In some configs.", only_for="fast runs")
    stages: tuple[Loop, ...] = field((Loop(), Loop(every=7)), doc="Several.")


def made(raw: dict[str, Any]) -> Toy:
    config = builder.build(Toy, raw)
    builder.check_fields(config)
    return config


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        made(raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_field_without_a_range_takes_any_value_whatever_its_name():
    assert made({"free": {"every": -7, "seed": -1}}).free == Free(-7, -1)


def test_two_fields_of_one_name_have_ranges_of_their_own():
    assert made({"every": 3, "loop": {"every": 1}}).loop.every == 1
    assert refusal({"every": 1}) == "config.every=1: must be between 3 and 5"
    assert refusal({"loop": {"every": 0}}) == "config.loop.every=0: must be larger than 0"
    assert refusal({"stages": [{"every": 1}, {"every": -1}]}) == "config.stages[1].every=-1: must be larger than 0"


def test_every_value_of_a_list_is_checked_and_named_by_its_number():
    assert refusal({"loop": {"rates": [0, 1]}}) == "config.loop.rates[1]=1.0: must be at least 0 and below 1"
    assert refusal({"loop": {"rates": [0, "1"]}}) == "config.loop.rates[1]: expected float, got '1' (str)"


def test_a_value_besides_the_range_is_taken_and_named():
    assert made({"rest": -1}).rest == -1
    assert refusal({"rest": 0}) == "config.rest=0: must be at least 1, or -1 for the rest"


def test_a_number_that_is_not_finite_is_refused_by_any_field():
    assert refusal({"loop": {"rates": [float("nan")]}}) == "config.loop.rates[0]=nan: must be a finite number"


def test_a_group_that_not_every_config_has_is_absent_unless_given():
    assert made({}).extra is None
    assert made({"extra": None}) == made({})
    assert made({"extra": {}}).extra == Extra()
    assert refusal({"extra": {"mode": "slow"}}) == "config.extra.mode='slow': choose one of '', fast"
    assert not [name for name in builder.flatten(made({})) if name.startswith("extra")]
    assert "extra" not in builder.to_json(made({}))
    assert builder.build(Toy, builder.to_dict(made({"extra": {"mode": "fast"}}))).extra == Extra("fast")


def test_a_group_has_the_defaults_that_its_config_gives_it():
    assert (made({}).loop.every, made({"quiet": {"rates": [0.1]}}).quiet.every) == (10, 10)
    assert made({}).quiet.every == 1000


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ({"loop": {"evry": 3}}, "config.loop.evry: no such field; did you mean config.loop.every?"),
        ({"stages": [{}, {"evry": 3}]}, "config.stages[1].evry: no such field; did you mean config.stages[1].every?"),
        ({"loop": {"seed": 3}}, "config.loop.seed: no such field; did you mean config.free.seed?"),
        ({"lop": {}}, "config.lop: no such field; did you mean config.loop?"),
        # of this config: a group that it does not have suggests nothing, of one that it has every field
        ({"loop": {"mode": 3}}, "config.loop.mode: no such field; available: loop.every, loop.rates"),
        ({"loop": {"mode": 3}, "extra": {}}, "config.loop.mode: no such field; did you mean config.extra.mode?"),
        ([], "config: expected a group of fields, got []"),
    ],
)
def test_an_unknown_field_is_answered_with_fields_of_this_config(raw: Any, hint: str):
    assert refusal(raw) == hint


def test_names_of_fields_count_lists_of_groups_once():
    names = builder.field_names(Toy)
    assert "stages[0].every" in names
    assert "stages[1].every" not in names
    assert "loop.rates" in names
    assert "extra.mode" in names
    assert "extra.mode" not in builder.field_names(Toy, groups=())
    assert builder.choices_of(Toy) == {"extra.mode": ("", "fast")}


@pytest.mark.parametrize("config", [Config, FinetuneConfig])
def test_every_field_says_in_a_line_what_it_means_and_takes_its_default(config: type):
    for name, item in builder.leaf_fields(config).items():
        assert info(item).doc.endswith("."), name
        assert "\n" not in info(item).doc, name
    for group_field in dataclasses.fields(config):
        assert info(group_field).doc, group_field.name
    builder.check_fields(config())
