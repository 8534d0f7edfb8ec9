"""The output of `finetune --dry_run`: what was read of each task, and the steps of its runs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.convert.loading import PretrainedModel
from bert_jax.finetuning.batches import num_steps
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.finetuning.initial import find_baseline, small_model_notes, task_model
from bert_jax.finetuning.report import shown_baseline
from bert_jax.finetuning.results import ExperimentOptions
from bert_jax.finetuning.task_data import TaskData, load_task_data
from bert_jax.tasks.interface import Task

_EXAMPLES = 3
_TOKENS = 48  # shown of an example


def describe_task(
    config: FinetuneConfig,
    *,
    task: Task,
    pretrained: PretrainedModel,
    options: ExperimentOptions,
    report: Callable[[str], None] = print,
) -> Iterator[str]:
    """Yield the lines about a task. Nothing is compiled or written. `report` gets a line where reading takes long.

    Raises:
      UserError: if data, model and config do not fit together.
    """
    tokenizer = pretrained.require_tokenizer()
    data = load_task_data(task, tokenizer=tokenizer, predict_test=options.predict_test, report=report)
    baseline = shown_baseline(task.selection, find_baseline(task, data.evals[0]).score)
    yield f"{task.name}: {data.describe()} examples; {baseline}"
    yield from data.notes(task)
    yield from small_model_notes(pretrained, config=config, rates=[run.learning_rate for run in options.runs])
    if config.features:
        task_model(pretrained, config=config)
        yield f"{task.name}: features {config.features} of the frozen encoder"
    else:
        sizes = [run.batch_size for run in options.runs]
        learner = FineTuner(
            config, task=task, pretrained=pretrained, data=data, batch_sizes=sizes, random_parts=options.random_parts
        )
        yield f"{task.name}: {learner.describe()}"
    count = data.train.features.num_examples if not config.features else len(data.train.examples)
    for run in options.runs:
        yield f"{task.name}: run {run.name}: {num_steps(run, examples=count)} steps of {run.batch_size} examples"
    yield from _examples(data, task=task, tokenizer=tokenizer)


def _examples(data: TaskData, *, task: Task, tokenizer: Any) -> Iterator[str]:
    features = data.train.features
    for number in range(min(_EXAMPLES, features.num_examples)):
        ids = np.concatenate(features.ids[number * features.group : (number + 1) * features.group])
        tokens = tokenizer.convert_ids_to_pieces(ids[:_TOKENS].tolist())
        target = None if features.targets is None else features.targets[number]
        more = " ..." if len(ids) > _TOKENS else ""
        yield f"{task.name}: train example {number}: {' '.join(tokens)}{more}  ->  {_target(target, task=task)}"


def _target(target: Any, *, task: Task) -> str:
    """Return a target as the labels that it stands for, if it has labels."""
    if np.ndim(target) == 0:
        return task.labels[target] if task.labels and target is not None else str(target)
    values = np.asarray(target)
    if not task.labels:
        return str(tuple(values.tolist()))
    if task.kind.target_dtype is np.float32:  # a bit per label
        return str([label for label, bit in zip(task.labels, values, strict=True) if bit])
    return " ".join("-" if value < 0 else task.labels[value] for value in values[:_TOKENS])
