"""A fine-tuning config has the options of its own task, and those of the config files and workdirs from before."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bert_jax.config import flatten, to_json
from bert_jax.config.finetuning import (
    FinetuneConfig,
    config_of_task,
    default_config,
    from_config_dict,
    from_saved,
    optimizer_config,
)
from bert_jax.config.task_options import TASKS, NerOptions, OwnOptions, SquadOptions
from bert_jax.errors import UserError
from bert_jax.finetuning.finetune import SAME_RUN
from bert_jax.kinds.table import KINDS
from bert_jax.runs.workdir import open_workdir
from bert_jax.tasks import registry
from tests.runs import run as run_command

# The groups that every config.json of fine-tuning had, whatever its task.
OLD_GROUPS: dict[str, dict[str, Any]] = {
    "squad": {
        "doc_stride": 128,
        "max_query_length": 64,
        "n_best_size": 20,
        "max_answer_length": 30,
        "null_score_threshold": "tune",
        "skip_bad_answers": False,
        "intermediate_file": "",
        "intermediate_epochs": 1,
    },
    "ner": {
        "tag_column": -1,
        "document_context": True,
        "features": "",
        "bilstm_hidden_size": 768,
        "bilstm_layers": 2,
    },
    "own": {
        "kind": "classification",
        "text": "text",
        "text_pair": "",
        "label": "label",
        "choices": "",
        "answer_start": "answer_start",
        "labels": "",
    },
}
GROUPS = (*OLD_GROUPS, "embed", "rerank")


def groups_of(config: FinetuneConfig) -> set[str]:
    return {name for name in GROUPS if getattr(config, name) is not None}


def message(raw: Any) -> str:
    with pytest.raises(UserError) as caught:
        from_config_dict(raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def old_record(config: FinetuneConfig) -> dict[str, Any]:
    """Return what config.json of `config` was when every config had the options of every task."""
    record = {**OLD_GROUPS, **json.loads(to_json(config))}
    del record["profile"], record["train"]["max_nonfinite_steps"]
    return record


def test_the_tasks_that_a_config_names_are_those_that_there_are():
    assert tuple(TASKS) == registry.TASKS


@pytest.mark.parametrize("task", [*TASKS, "all", "mrpc,squad_v1,ner"])
def test_a_config_has_the_options_of_its_own_tasks_alone(task: str):
    expected = {
        "squad_v1": {"squad"},
        "squad_v2": {"squad"},
        "ner": {"ner"},
        "own": {"own"},
        "embed": {"embed"},
        "rerank": {"rerank"},
        "mrpc,squad_v1,ner": {"squad", "ner"},
    }.get(task, set())
    config = from_config_dict(default_config(task=task))
    assert groups_of(config) == expected
    assert from_config_dict({"task": task}) == config
    assert {name.partition(".")[0] for name in flatten(config)} & set(GROUPS) == expected
    assert set(json.loads(to_json(config))) & set(GROUPS) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_custom_data_has_the_options_of_its_kind(kind: str):
    raw = default_config(task="own")
    raw.update({"own": {"kind": kind, "choices": "choices"}})
    expected = {"own"} | {"span": {"squad"}, "tags": {"ner"}}.get(kind, set())
    assert groups_of(from_config_dict(raw)) == expected


@pytest.mark.parametrize(
    ("raw", "field", "config"),
    [
        ({"task": "mrpc", "squad": {"doc_stride": 64}}, "squad.doc_stride", "config.task=mrpc"),
        ({"task": "mrpc", "own": {"text": "review"}}, "own.text", "config.task=mrpc"),
        ({"task": "squad_v1", "ner": {"tag_column": 1}}, "ner.tag_column", "config.task=squad_v1"),
        ({"task": "ner,mrpc", "squad": {"n_best_size": 1}}, "squad.n_best_size", "config.task=ner,mrpc"),
        ({"task": "all", "ner": {"features": "last"}}, "ner.features", "config.task=all"),
        (
            {"task": "own", "own": {"kind": "tags"}, "squad": {"doc_stride": 64}},
            "squad.doc_stride",
            "config.task=own with config.own.kind=tags",
        ),
    ],
)
def test_an_option_of_another_task_is_refused_by_name(raw: dict[str, Any], field: str, config: str):
    text = message(raw)
    assert text.startswith(f"config.{field}: no such field in {config}; it is an option of ")
    assert text.endswith(": leave it out")


def test_options_of_another_task_with_their_defaults_stay_out_of_the_way_of_another_task():
    raw = default_config(task="squad_v1").to_dict()
    raw["task"] = "mrpc"
    assert from_config_dict(raw) == from_config_dict({"task": "mrpc"})
    raw["task"] = "ner"
    assert groups_of(from_config_dict(raw)) == {"ner"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config=configs/finetune_glue.py:mrpc", "--config.squad.doc_stride=3"], "config.squad.doc_stride: no such"),
        (["--config=configs/finetune_ner.py:last", "--task=mrpc"], "config.ner.features: no such field"),
        (["--config=configs/finetune_own.py:tags", "--config.squad.doc_stride=3"], "config.squad.doc_stride: no such"),
        (["--config=FILE"], "config.squad: no such field in this config; it is an option of squad_v1"),
    ],
)
def test_an_option_of_another_task_on_the_command_line_is_one_line(flags: list[str], says: str, tmp_path: Path):
    (tmp_path / "file.py").write_text(
        "from bert_jax.finetuning.config import default_config\n"  # the name from before
        "def get_config():\n"
        "    config = default_config(task='mrpc')\n"
        "    config.squad.doc_stride = 3\n"
        "    return config\n"
    )
    flags = [flag.replace("FILE", str(tmp_path / "file.py")) for flag in flags]
    command = [sys.executable, "-m", "bert_jax.finetune", "--init=x", f"--workdir={tmp_path / 'work'}", *flags]
    ended = run_command(command)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_one_of_several_tasks_has_its_own_options():
    config = from_config_dict({"task": "squad_v1,ner,mrpc", "squad": {"doc_stride": 64}})
    assert groups_of(config_of_task(config, "squad_v1")) == {"squad"}
    assert config_of_task(config, "squad_v1").squad == SquadOptions(doc_stride=64)
    assert config_of_task(config, "ner").ner == NerOptions()
    assert groups_of(config_of_task(config, "mrpc")) == set()


@pytest.mark.parametrize("task", TASKS)
def test_a_config_json_with_the_options_of_every_task_is_read(task: str):
    config = from_config_dict({"task": task})
    assert from_saved(old_record(config)) == config
    changed = {**old_record(config), "ner": {**OLD_GROUPS["ner"], "tag_column": 1}}  # which nothing else read
    assert (from_saved(changed) == config) is (task != "ner")


def test_a_workdir_from_before_is_that_of_the_same_run(tmp_path: Path):
    config = from_config_dict({"task": "own", "own": {"text": "review"}})
    (tmp_path / "runs" / "b32").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(old_record(config)))
    again = dataclasses.replace(config, profile=dataclasses.replace(config.profile, steps="1:2"))
    open_workdir(tmp_path, config=again, same_run=SAME_RUN).close()
    other = dataclasses.replace(config, own=OwnOptions(text="body"))
    with pytest.raises(UserError, match=r"config.own.text was 'review', is 'body'"):
        open_workdir(tmp_path, config=other, same_run=SAME_RUN)
    with pytest.raises(UserError, match=r"another config \(config.task was 'own', is 'squad_v1'\)"):
        open_workdir(tmp_path, config=from_config_dict({"task": "squad_v1"}), same_run=SAME_RUN)


def test_profile_and_nonfinite_steps_are_those_of_every_run():
    config = from_config_dict({"profile": {"steps": "10:15"}, "train": {"max_nonfinite_steps": 2}})
    assert (config.profile.steps, config.train.max_nonfinite_steps) == ("10:15", 2)
    assert FinetuneConfig().train.max_nonfinite_steps == 0
    assert "config.profile.steps='10'" in message({"profile": {"steps": "10"}})
    assert message({"train": {"max_nonfinite_steps": -1}}).endswith("must not be negative")
    assert message({"mesh": {"data": -1, "tensor": -1}}).startswith("config.mesh: only one of data, fsdp, tensor")


def test_the_optimizer_is_that_of_the_config():
    config = from_config_dict({"optimizer": {"beta1": 0.8, "weight_decay": 0.2}})
    assert (optimizer_config(config).beta1, optimizer_config(config).weight_decay) == (0.8, 0.2)
