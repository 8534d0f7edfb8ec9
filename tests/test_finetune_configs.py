"""Every fine-tuning config, with every argument that its docstring names, validates and takes steps, shrunk."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bert_jax.config.finetuning import FinetuneConfig, config_of_task
from bert_jax.config.task_options import EMBED_FORMS, FEATURES, RERANK_LOSSES, TASKS
from bert_jax.convert.loading import PretrainedModel
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.settings import grid, step_settings
from bert_jax.kinds.table import KINDS
from bert_jax.tasks import glue
from tests.finetune_configs import documented_arguments, load_config, shrink, write_data
from tests.finetune_data import open_runtime, tiny_source
from tests.runs import ROOT

# What the program takes. Nothing can be trained on AX, and "all" is every task of GLUE.
ACCEPTED: dict[str, set[str]] = {
    "finetune_embed": set(EMBED_FORMS),
    "finetune_glue": {*glue.TASKS, "all"} - {"ax"},
    "finetune_ner": {"", *FEATURES},
    "finetune_own": set(KINDS),
    "finetune_rerank": set(RERANK_LOSSES),
    "finetune_squad": {task.removeprefix("squad_") for task in TASKS if task.startswith("squad_")},
    "finetune_swag": set(),
}
ARGUMENTS = [(name, argument) for name, known in ACCEPTED.items() for argument in sorted(known) or [None]]
# A program of each kind is compiled in the default run: tasks of one kind share it. Three labels instead of two, and a
# row of Table 7 with its encoder and tagger, are other programs; tests/test_finetune_tasks.py trains two of those rows.
SLOW = {"mnli", "kl", "margin_mse", "triplets", *FEATURES}


def test_every_config_is_known_and_documents_the_arguments_that_it_takes():
    assert {path.stem for path in (ROOT / "configs").glob("finetune_*.py")} == set(ACCEPTED)
    assert {name: documented_arguments(name) for name in ACCEPTED} == ACCEPTED


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_an_argument_gives_a_valid_config_of_its_task(name: str, argument: str | None):
    config = load_config(name, argument)
    assert config.task in {"finetune_glue": {argument}, "finetune_squad": {f"squad_{argument}"}}.get(
        name, {name.removeprefix("finetune_")}
    )
    assert config.features == (argument if name == "finetune_ner" else "")
    assert config.own is None or config.own.kind == argument
    assert config.embed is None or config.embed.form == argument
    assert config.rerank is None or config.rerank.loss == argument


def test_all_and_several_tasks_are_trained_as_each_alone():
    for argument, names in (("all", ACCEPTED["finetune_glue"] - {"all"}), ("cola,mrpc", {"cola", "mrpc"})):
        config = load_config("finetune_glue", argument)
        assert all(config_of_task(config, name) == load_config("finetune_glue", name) for name in names)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """Return four layers, for the features that need them."""
    return tiny_source(tmp_path_factory.mktemp("source"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def programs() -> dict[Any, Any]:
    """Hold the compiled program of each kind: arguments that compute the same share it."""
    return {}


def program_key(config: FinetuneConfig, learner: FineTuner) -> Any:
    """Return what a program is made of: a rate and the number of steps are arguments of its step."""
    plain = FinetuneConfig(
        recipe=config.recipe,
        model=config.model,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0),
        train=dataclasses.replace(config.train, num_epochs=1.0),
        mesh=config.mesh,
    )
    return plain, learner.program.model, learner.program.kind, learner.program.shape


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        pytest.param(name, argument, marks=[pytest.mark.slow] if argument in SLOW else [])
        for name, argument in ARGUMENTS
        if argument != "all"
    ],
)
def test_an_argument_takes_two_steps_on_eight_devices(
    tmp_path: Path, name: str, argument: str | None, source: PretrainedModel, programs: dict[Any, Any]
):
    config = load_config(name, argument)
    kind = config.own.kind if config.own else config.embed.form if config.embed else ""
    config = shrink(config, directory=write_data(tmp_path / "data", task=config.task, kind=kind))
    settings = grid(config, sweep=False, seeds=1)[0]
    made = Experiment(
        config,
        task=open_config_task(config),
        pretrained=source,
        options=ExperimentOptions(runs=(settings,)),
        runtime=open_runtime(tmp_path),
        directory=tmp_path,
    )
    learner = made.learner
    assert isinstance(learner, FineTuner) == (not config.features)
    if isinstance(learner, FineTuner):
        learner.program = programs.setdefault(program_key(config, learner), learner.program)
    learner.prepare()
    state = learner.initial_state(settings)
    before = jax.device_get(state.params)
    fixed = step_settings(settings, num_steps=2, warmup_fraction=0)
    for rows in learner.batches(settings, start=0, end=2):
        state, output = learner.train_step(state, rows, fixed)
        assert bool(output.finite)
    assert int(state.step) == 2
    after = jax.device_get(state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    # Every part of the model is trained, the head and the frozen features' tagger included.
    for part in before:
        moved = jax.tree.map(lambda old, new: bool((old != new).any()), before[part], after[part])
        assert any(jax.tree.leaves(moved)), part
