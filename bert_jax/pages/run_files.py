"""The files of a run, read for its page: config, metrics, goodput, filled masks, results. No jax."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bert_jax.config import Config, ModelConfig, flatten, model_preset, presets
from bert_jax.config import from_saved as pretraining_config
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.finetuning import from_saved as finetuning_config
from bert_jax.data.dataset_info import finished_lengths, load_dataset_info
from bert_jax.errors import UserError
from bert_jax.files import open_regular
from bert_jax.json_files import parse_object, read_json, read_log
from bert_jax.json_forms import Count, Finite, fit
from bert_jax.runs.goodput import read_seconds

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
Points = list[tuple[float, float]]  # step and value


class FilledMask(TypedDict):
    """What was at a masked place, and what the model puts there."""

    answer: str
    guess: str
    probability: Finite


class FilledSequence(TypedDict):
    """A held-out sequence: the text before, between and after its masks."""

    text: list[str]
    masks: list[FilledMask]


class SamplesLine(TypedDict):
    """The filled masks of one evaluation."""

    step: Count
    samples: list[FilledSequence]


@dataclasses.dataclass(frozen=True)
class Log:
    """The metrics of one run: the points of each metric, and the seconds of wall time by kind."""

    name: str
    metrics: Mapping[str, Points]
    seconds: Mapping[str, float]

    @property
    def last_step(self) -> float:
        """Return the last step with a metric, 0 without one."""
        return max((points[-1][0] for points in self.metrics.values()), default=0)

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric, None without one."""
        points = self.metrics.get(metric)
        return points[-1][1] if points else None


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a workdir holds. Pre-training has one log, fine-tuning one per run of its sweep.

    `changed` has the fields that differ from the defaults: name, default, value; `defaults` says which these are.
    """

    path: Path
    config: Config | FinetuneConfig
    defaults: str
    changed: Sequence[tuple[str, Any, Any]]
    logs: Sequence[Log]
    samples: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def is_finetuning(self) -> bool:
        """Return whether the runs are those of a task."""
        return isinstance(self.config, FinetuneConfig)


def read_run(path: str | Path) -> RunFiles:
    """Read a workdir, or the folder of one task of a fine-tuning workdir.

    Raises:
      UserError: if there is no run in it, or a file cannot be read.
    """
    path = Path(path)
    record = _config_record(path)
    config: Config | FinetuneConfig
    if "task" in record:
        config = finetuning_config(record)
        defaults, base = "the defaults of fine-tuning", FinetuneConfig()
    else:
        config = pretraining_config(record)
        defaults, base = _pretraining_defaults(config)
    folders = sorted(file.parent for file in path.glob(f"runs/*/{METRICS}"))
    logs = [_log(folder) for folder in folders or [path]]
    results = read_json(path / "results.json") if (path / "results.json").is_file() else {}
    return RunFiles(
        path=path,
        config=config,
        defaults=defaults,
        changed=_changed(config, base=base),
        logs=logs,
        samples=_samples(path / SAMPLES),
        data=_statistics(config, workdir=path) if isinstance(config, Config) else {},
        results=results,
    )


def _config_record(path: Path) -> dict[str, Any]:
    for folder in (path, path.parent):  # the tasks of GLUE share the config of their parent folder
        if (folder / "config.json").is_file():
            return read_json(folder / "config.json")
    raise UserError(f"--workdir={path}: contains no config.json: name the workdir of train or finetune")


def _pretraining_defaults(config: Config) -> tuple[str, Config]:
    """Return the defaults with the model preset of this config's shape, if there is one."""

    def shape(model: ModelConfig) -> tuple[Any, ...]:
        inner = model.intermediate_size
        return model.architecture, model.num_hidden_layers, model.hidden_size, model.num_attention_heads, inner

    bases: list[tuple[str, Config]] = []
    for name in presets.NAMES:
        preset = dataclasses.replace(model_preset(name), vocab_size=config.model.vocab_size)
        if shape(preset) == shape(config.model):
            base = dataclasses.replace(Config(), model=preset)
            bases.append((f"the paper's procedure with the model preset {name}", base))
    if not bases:
        return "the paper's procedure", Config()
    return min(bases, key=lambda item: len(_changed(config, base=item[1])))  # two presets may share a shape


def _changed(config: Any, *, base: Any) -> list[tuple[str, Any, Any]]:
    before, now = flatten(base), flatten(config)
    names = [name for name in now if name not in before or before[name] != now[name]]
    return [(name, before.get(name), now[name]) for name in names]


def _log(folder: Path) -> Log:
    metrics: dict[str, Points] = {}
    for line in read_log(folder / METRICS):
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value) and "step" in line:
                metrics.setdefault(name, []).append((line["step"], value))
    return Log(folder.name, metrics, read_seconds(folder))  # a page without these is better than none


def _samples(file: Path) -> list[SamplesLine]:
    """Return the lines of filled masks; damaged ones are left out."""
    lines: list[SamplesLine] = []
    if file.is_file():
        with contextlib.suppress(OSError), open_regular(file) as stream:
            for line in stream:
                with contextlib.suppress(ValueError):
                    lines.append(fit(parse_object(line), SamplesLine))
    return [line for line in lines if all(len(item["text"]) == len(item["masks"]) + 1 for item in line["samples"])]


def _statistics(config: Config, *, workdir: Path) -> dict[str, Any]:
    """Return the statistics of the data set, by sequence length; empty if it is not here."""
    directory = Path(config.data.directory) if config.data.directory else workdir / "data"
    try:
        infos = [load_dataset_info(directory, max_seq_length=length) for length in finished_lengths(directory)]
    except UserError:
        return {}
    used = {phase.max_seq_length for phase in config.train.phases}
    return {str(info.max_seq_length): dict(info.statistics) for info in infos if info.max_seq_length in used}


def describe(value: Any) -> str:
    """Return a config value as it is typed after `--config.NAME=`; "-" if there is none."""
    return "-" if value is None else repr(value) if value == "" else str(value)
