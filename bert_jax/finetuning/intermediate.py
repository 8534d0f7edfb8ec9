"""Intermediate training on another data set of the same format, as the paper does with TriviaQA (section 4.2)."""

import dataclasses
from pathlib import Path

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel, load_pretrained
from bert_jax.finetuning.experiment import Experiment
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.settings import RunSettings
from bert_jax.runs.runtime import Runtime
from bert_jax.tasks.interface import Task
from bert_jax.tasks.registry import open_task

FOLDER = "intermediate"


def intermediate_model(
    config: FinetuneConfig,
    *,
    task: Task,
    pretrained: PretrainedModel,
    directory: Path,
    random_parts: tuple[str, ...],
    runtime: Runtime,
) -> PretrainedModel:
    """Return the model after one run on `squad.intermediate_file`. The run is done once, in WORKDIR/intermediate.

    The run is a task with that file as its train set. The dev set of the main task (or `dev_fraction`) selects its best
    evaluation.

    Raises:
      Stopped: if the user asked to stop.
      UserError: if the file is missing or wrong.
    """
    directory = directory / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    assert config.squad is not None  # only these options name an intermediate file
    data = dataclasses.replace(config.data, train_file=config.intermediate_file)
    squad = dataclasses.replace(config.squad, intermediate_file="")
    first = dataclasses.replace(config, data=data, squad=squad)
    train = config.train
    run = RunSettings(train.batch_size, config.optimizer.learning_rate, config.squad.intermediate_epochs, config.seed)
    runtime.report(f"{task.name}: intermediate training on {config.intermediate_file}")
    Experiment(
        first,
        task=open_task(task.name, data=data, squad=squad, ner=config.ner, own=config.own),
        pretrained=pretrained,
        options=ExperimentOptions(runs=(run,), random_parts=random_parts),
        runtime=runtime,
        directory=directory,
    ).run_all()
    return load_pretrained(directory, report=runtime.report)
