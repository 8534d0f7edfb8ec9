"""What no loss reaches keeps its values in pre-training, and is newly initialized and named in fine-tuning."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import tiny_config

from bert_jax.config import DataConfig, OptimizerConfig
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.initial import pretrained_params
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.dry_run import describe_run
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.training.optimizers import make_optimizer, optimizer_rule
from tests.finetune_data import own_config, tiny_source, write_sentiment

UNREACHED = ("pooler", "next_sentence")


@pytest.mark.parametrize("name", ["lamb", "adamw", "bert_adam"])
def test_parameters_without_a_gradient_keep_their_bits(name: str) -> None:
    params: Any = {"pooler": {"dense": {"kernel": jnp.full((3, 3), 0.7)}}, "encoder": {"kernel": jnp.ones((3, 3))}}
    config = OptimizerConfig(name=name)
    gradients = jax.tree.map(jnp.zeros_like, params)
    norms = {}
    for untrained in ((), UNREACHED):
        rule = optimizer_rule(config, recipe="modern")
        optimizer = make_optimizer(config, rule=rule, schedule=lambda _: jnp.float32(0.1), untrained=untrained)
        values, state = params, optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(gradients, state, values)
            values = cast(Any, optax.apply_updates(values, updates))
        norms[untrained] = np.asarray(values["pooler"]["dense"]["kernel"])
        assert (np.asarray(values["encoder"]["kernel"]) < 1).all()  # a part of the loss decays as before
    np.testing.assert_array_equal(norms[UNREACHED], params["pooler"]["dense"]["kernel"])
    assert (norms[()] < 0.7).all()


@pytest.mark.parametrize(
    ("objective", "train", "untrained"),
    [("mlm", "auto", UNREACHED), ("mlm+nsp", "mlm", UNREACHED), ("mlm+nsp", "auto", ()), ("mlm+sop", "auto", ())],
)
def test_a_program_knows_what_its_loss_does_not_reach(objective: str, train: str, untrained: tuple[str, ...]) -> None:
    base = tiny_config()
    config = dataclasses.replace(
        base, data=DataConfig(objective=objective), train=dataclasses.replace(base.train, objective=train)
    )
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
    assert program.untrained_parts == untrained
    decays = [line.split()[2] for line in describe_run(program, infos={}).splitlines() if line.startswith("pooler/")]
    assert decays.count("yes") == (0 if untrained else 1)


def record(*, untrained: list[str] | None, objective: str) -> dict[str, Any]:
    """Return the record of a pre-training checkpoint; `untrained` None: of an earlier version."""
    own = {} if untrained is None else {"untrained": untrained}
    return {"config": {"data": {"objective": objective}, "masking": {}}, **own}


@pytest.mark.parametrize(
    ("untrained", "objective", "random"),
    [(["pooler"], "mlm+nsp", True), ([], "mlm", False), (None, "mlm", True), (None, "mlm+nsp", False)],
)
def test_an_untrained_pooler_is_initialized_again_in_fine_tuning(
    tmp_path: Path, untrained: list[str] | None, objective: str, random: bool
) -> None:
    source = tiny_source(tmp_path / "source")
    source = dataclasses.replace(source, record=record(untrained=untrained, objective=objective))
    assert ("pooler" in source.untrained) == random
    assert ("pooler" in source.trained_parts) != random
    task = open_config_task(own_config(write_sentiment(tmp_path / "data")))
    parts = ("encoder", "pooler", "classifier")
    params = pretrained_params(source, task=task, parts=parts, random_parts=())
    assert ("pooler" in params) != random
