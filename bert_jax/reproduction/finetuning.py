"""The unit of a cell that fine-tunes: all seeds of a task from one checkpoint."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import ModelConfig
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.finetuning.results import RESULT, RUNS
from bert_jax.finetuning.settings import grid
from bert_jax.json_files import read_json
from bert_jax.model.architectures import architecture_of
from bert_jax.model.feature_layers import feature_layers
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.records import goodput_seconds
from bert_jax.reproduction.work import Context, Interrupted, Work, determining, file_digest
from bert_jax.tasks.interface import Task

_INTERMEDIATE = "squad.intermediate_file"
_CHARACTERS_PER_TOKEN = 4.0  # of English, with the space after a word
_LOCATION = "location"


@dataclasses.dataclass(frozen=True)
class TaskFiles:
    """The examples of a task that runs read: how many of train and how long they are, and a digest of all."""

    num_train: int
    characters: float  # of the mean example
    splits: tuple[str, ...]
    digest: str


class FinetuningWork(Work):
    """Fine-tuning, or feature-based training, of one task from the checkpoint of a model at `step`."""

    kind = "fine-tuning"
    packages = ("rows", "model", "training", "kinds", "tasks", "finetuning")

    def __init__(
        self,
        config: FinetuneConfig,
        *,
        models: Sequence[PretrainingWork],
        step: int,
        title: str,
        seeds: int,
        sweep: bool = False,
    ):
        """Read the task's files; several `models` are joined to one.

        Raises:
          UserError: if they are missing or wrong.
        """
        self.config, self.models, self.step, self.seeds, self.sweep = config, tuple(models), step, seeds, sweep
        self.title = title
        self.files = read_task(config)
        self._intermediate = file_digest(Path(config.intermediate_file)) if config.intermediate_file else ""

    @property
    def group(self) -> str:
        """Return the kind and the task."""
        return f"{self.kind} {self.config.task} {self.config.features}".strip()

    @property
    def needs(self) -> tuple[Work, ...]:
        """Return the pre-training runs."""
        return self.models

    def content(self) -> Mapping[str, Any]:
        """Return the config without the fields that do not determine the result, the data, and the checkpoint's step.

        The number of seeds is not in it: more seeds are more runs in the same folder.
        """
        fields = determining(self.config, free=finetune.SAME_RUN.free)
        if self._intermediate:
            fields[_INTERMEDIATE] = self._intermediate
        if self.sweep:
            fields["sweep"] = dataclasses.asdict(self.config.sweep)
        return {"config": fields, "data": self.files.digest, "step": self.step}

    def flops(self) -> float:
        """Return the FLOPs of all runs, with a token per four characters."""
        runs = grid(self.config, sweep=self.sweep, seeds=self.seeds)
        length = self.config.data.max_seq_length
        of_task = self.config.task in ("ner", "squad_v1", "squad_v2")  # which read long texts in windows
        tokens = self.files.characters / _CHARACTERS_PER_TOKEN
        tokens_per_epoch = self.files.num_train * (tokens if of_task else min(tokens, length))
        return sum(run.num_epochs for run in runs) * tokens_per_epoch * self._flops_of_token()

    def done_fraction(self, folder: Path) -> float:
        """Return the fraction of the runs that are finished."""
        runs = grid(self.config, sweep=self.sweep, seeds=self.seeds)
        return sum((folder / RUNS / run.name / RESULT).exists() for run in runs) / len(runs)

    def run(self, folder: Path, *, context: Context) -> None:
        """Train all seeds, or those that are missing."""
        request = finetune.Request(
            init=",".join(str(model.checkpoint(self.step, context=context)) for model in self.models),
            workdir=str(folder),
            sweep=self.sweep,
            seeds=self.seeds,
            ensemble=self.seeds if self.config.task.startswith("squad") and self.seeds > 1 else 0,
            predict_test="test" in self.files.splits and self.config.task == "ner",
            command=context.command,
        )
        if status := finetune.finetune(self.config, request=request, hosts=context.hosts):
            raise Interrupted(status)

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the metrics of each run of the best setting, by split, and those of the ensemble."""
        record = read_json(folder / "results.json")
        setting = record["summary"][0]["setting"]
        runs = [run for run in record["runs"] if run["name"].rpartition("-s")[0] == setting]
        return {
            "setting": setting,
            "baseline": record["constant"],
            "runs": [{"seed": run["settings"]["seed"], "metrics": run["metrics"]} for run in runs],
            "ensemble": record.get("ensemble", {}).get("metrics", {}),
        }

    def covers(self, result: Mapping[str, Any]) -> bool:
        """Return whether the result has all seeds."""
        seeds = {run["seed"] for run in result["runs"]}
        return {run.seed for run in grid(self.config, sweep=False, seeds=self.seeds)} <= seeds

    def seconds(self, folder: Path) -> float:
        """Return the seconds of all runs."""
        return goodput_seconds(folder)

    def _flops_of_token(self) -> float:
        model, config = self.models[0].config.model, self.config
        if config.features:
            return _tagger_flops(config, model=model)
        length = config.data.max_seq_length
        row = architecture_of(model).train_flops_per_row
        return row(model, max_seq_length=length, max_predictions=0) / length


def _tagger_flops(config: FinetuneConfig, *, model: ModelConfig) -> float:
    """Return the FLOPs per word, forward and backward: 6 per parameter of a BiLSTM of L layers."""
    assert config.ner is not None
    hidden, layers = config.ner.bilstm_hidden_size, config.ner.bilstm_layers
    states = len(feature_layers(config.features, num_layers=model.num_hidden_layers))
    inputs = model.hidden_size * (states if config.features.startswith("concat") else 1)
    first, further = 2 * 4 * hidden * (inputs + hidden), 2 * 4 * hidden * (2 * hidden + hidden)
    return 6.0 * (first + (layers - 1) * further)


def read_task(config: FinetuneConfig) -> TaskFiles:
    """Read the examples of a task: its train set, the splits that it is evaluated on, and NER's test set if it exists.

    Raises:
      UserError: if files are missing or wrong.
    """
    ner = config.ner
    key = (config.task, config.data, config.squad, ner and (ner.word_column, ner.tag_column))
    if key not in _FILES:
        _FILES[key] = _read(finetune.open_config_task(config))
    return _FILES[key]


def _fields(example: Any) -> list[Any]:
    """Return the values of an example's fields, without the line of its file: data may move to another folder."""
    return [getattr(example, item.name) for item in dataclasses.fields(example) if item.name != _LOCATION]


def _characters(example: Any) -> int:
    """Return the length of an example's texts and words, each with the space after it."""
    names = [item.name for item in dataclasses.fields(example) if item.name not in (_LOCATION, "tags", "file_tags")]
    values = [getattr(example, name) for name in names]
    texts = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return sum(len(text) + 1 for text in texts if isinstance(text, str))


_FILES: dict[Any, TaskFiles] = {}  # rows of a table read the same files


def _read(task: Task) -> TaskFiles:
    digest, num_train, characters, splits = hashlib.sha256(), 0, 0.0, []
    for split in dict.fromkeys(("train", *task.eval_splits(), *(("test",) if task.name == "ner" else ()))):
        if split == "dev" and task.data.dev_fraction:  # a part of train
            continue
        try:
            examples = task.read(split)
        except UserError:
            if split not in task.eval_splits() and split != "train":
                continue
            raise
        splits.append(split)
        digest.update(repr((split, len(examples))).encode())
        for example in examples:
            digest.update(repr(_fields(example)).encode("utf-8", "backslashreplace"))
        if split == "train":
            num_train = len(examples)
            characters = sum(_characters(example) for example in examples) / max(num_train, 1)
    limit = task.data.max_train_examples
    return TaskFiles(min(num_train, limit) if limit else num_train, characters, tuple(splits), digest.hexdigest())
