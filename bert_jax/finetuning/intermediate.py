"""Train on another data set of the same form first: the paper's TriviaQA step (section 4.2)."""

import dataclasses
from pathlib import Path

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel, load_pretrained
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.results import Wanted
from bert_jax.finetuning.settings import RunSettings
from bert_jax.runs.runtime import Runtime
from bert_jax.tasks.interface import Task
from bert_jax.tasks.registry import open_task

FOLDER = "intermediate"


def intermediate_source(
    config: FinetuneConfig,
    *,
    task: Task,
    source: PretrainedModel,
    directory: Path,
    fresh: tuple[str, ...],
    runtime: Runtime,
) -> PretrainedModel:
    """Return the SOURCE after one run on `squad.intermediate_file`, done once and kept in WORKDIR/intermediate.

    It is a task of its own with that file as train set, with the task's own dev set (or `dev_fraction`) selecting
    among its epochs.

    Raises:
      Stopped: if the user asked to stop.
      UserError: if the file is missing or wrong.
    """
    directory = directory / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    assert config.squad is not None  # a config has no intermediate file without
    data = dataclasses.replace(config.data, train_file=config.intermediate_file)
    squad = dataclasses.replace(config.squad, intermediate_file="")
    first = dataclasses.replace(config, data=data, squad=squad)
    train = config.train
    run = RunSettings(train.batch_size, config.optimizer.learning_rate, config.squad.intermediate_epochs, config.seed)
    runtime.report(f"{task.name}: first stage on {config.intermediate_file}")
    Experiment(
        first,
        task=open_task(task.name, data=data, squad=squad, ner=config.ner, own=config.own),
        source=source,
        wanted=Wanted(runs=(run,), fresh_parts=fresh),
        runtime=runtime,
        directory=directory,
    ).run_all()
    return load_pretrained(directory, report=runtime.report)
