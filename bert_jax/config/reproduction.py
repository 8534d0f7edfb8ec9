"""Config of a scale: sizes, budgets and tasks at which the paper's experiments run; built like `bert_jax.config`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_jax.config import files, finetuning
from bert_jax.config.builder import build, check_fields, to_dict
from bert_jax.config.fields import field, group
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.presets import model_preset
from bert_jax.config.pretraining import Config, validate
from bert_jax.errors import UserError

ROWS_OF_TABLE_6 = 6
PREFIX = "reproduce_"  # of the files in configs/


@dataclasses.dataclass(frozen=True)
class ScaledTask:
    """How a task is fine-tuned at a scale."""

    name: str = field("", doc="Name by which the columns of the tables ask for the task.")
    sweep: bool = field(False, doc="Run the grid of config.sweep and report the setting with the best mean.")
    config: FinetuneConfig = group(
        FinetuneConfig, task="mrpc", doc="Config of the runs; data.directory is relative to --data_dir."
    )


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """The complete config of a scale."""

    pretraining: Config = group(
        Config, doc="Pre-training of BERT-Base at this scale; data.input is relative to --data_dir."
    )
    large: str = field("L-24_H-1024_A-16", doc="Shape of BERT-Large at this scale, as in default_config(model=...).")
    lstm: str = field("L-2_H-1632_A-1", doc="Shape of each of the two LSTM language models, at equal compute.")
    sizes: tuple[str, ...] = field(
        (
            "L-3_H-768_A-12",
            "L-6_H-768_A-3",
            "L-6_H-768_A-12",
            "L-12_H-768_A-12",
            "L-12_H-1024_A-16",
            "L-24_H-1024_A-16",
        ),
        doc="Shapes of the six models of Table 6, in the paper's order.",
    )
    has_cased: bool = field(True, doc="Whether Table 7 has cased models, as the paper's, or those of the other tables.")
    tasks: tuple[ScaledTask, ...] = field((), doc="The tasks that are run at this scale; columns of others are empty.")
    replacements: tuple[str, ...] = field(
        (), doc="Columns that are measured instead of one that cannot be, as in mnli=sst2."
    )
    measures: tuple[str, ...] = field(
        (), doc="Columns added to the ablations (tables 5, 6 and 8, Figure 5): bits_per_byte, minimal_pairs, a task."
    )
    minimal_pairs: str = field("", doc="Files of minimal pairs, relative to --data_dir.")
    pairs_per_paradigm: int = field(
        0, at_least=0, unit="pairs", doc="Pairs of each paradigm (UID) to score, the first of its file; 0: all."
    )
    seeds: int = field(5, above=0, unit="seeds", doc="Fine-tuning runs per cell, unless --seeds is given.")
    points: tuple[float, ...] = field(
        (0.03, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0), above=0, at_most=1, doc="Checkpoints of Figure 5, of all steps."
    )
    flops_per_second: float = field(
        0.0, at_least=0, doc="Speed of the machine that the scale is for, until runs have measured it; 0: unknown."
    )
    notes: tuple[str, ...] = field((), doc="What a reader must know to compare with the paper.")


def default_scale() -> ConfigDict:
    """Return the paper's scale, without tasks, as an editable ConfigDict."""
    return ConfigDict(to_dict(ScaleConfig()))


def scaled_task(
    name: str, *, file: str, directory: str, sweep: bool = False, changes: Mapping[str, Any] | None = None
) -> ConfigDict:
    """Return one entry of `tasks`: the config `FILE[:argument]` with `changes` of its fields, by dotted name.

    `directory` is the folder of the task's files in --data_dir.
    """
    raw = with_changes(files.load(file), {"data.directory": directory, **(changes or {})})
    return ConfigDict({"name": name, "sweep": sweep, "config": raw})


def with_changes(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries with `changes` by dotted name, without changing `raw`; unknown names are added."""
    result = dict(raw)
    for path, value in changes.items():
        first, _, rest = path.partition(".")
        result[first] = with_changes(result.get(first) or {}, {rest: value}) if rest else value
    return result


def load_scale(name: str) -> tuple[str, ScaleConfig]:
    """Return the title and the config of `NAME` (configs/reproduce_NAME.py), or of a file of the same form.

    Raises:
      UserError: if there is no such file, or its config is wrong.
    """
    packaged = files.FOLDER / f"{PREFIX}{name}.py"
    path = packaged if name.isidentifier() and packaged.is_file() else Path(name)
    if not name or not path.is_file():
        raise UserError(f"--scale={name}: choose one of {', '.join(scales())}, or a file like configs/{PREFIX}tiny.py")
    return path.stem.removeprefix(PREFIX), from_config_dict(files.load(path))


def scales() -> list[str]:
    """Return the names of the packaged scales."""
    return sorted(path.stem.removeprefix(PREFIX) for path in files.FOLDER.glob(f"{PREFIX}*.py"))


def from_config_dict(config: ConfigDict | Mapping[str, Any]) -> ScaleConfig:
    """Return a validated `ScaleConfig`.

    Raises:
      UserError: for an unknown field, a wrong type or an impossible value.
    """
    scale = build(ScaleConfig, config)
    check_fields(scale)
    validate(scale.pretraining)
    for shape in (scale.large, scale.lstm, *scale.sizes):
        model_preset(shape)
    if len(scale.sizes) != ROWS_OF_TABLE_6:
        raise UserError(f"config.sizes has {len(scale.sizes)} shapes: Table 6 has {ROWS_OF_TABLE_6}")
    names = [task.name for task in scale.tasks]
    for task in scale.tasks:
        if not task.name or names.count(task.name) > 1:
            raise UserError(f"config.tasks: the name {task.name!r} is empty or twice there: give each its own")
        finetuning.validate(task.config)
    for text in scale.replacements:
        if text.count("=") != 1:
            raise UserError(f"config.replacements: {text!r}: write OLD=NEW, for example mnli=sst2")
    _check_points(scale)
    return scale


def _check_points(scale: ScaleConfig) -> None:
    steps = scale.pretraining.train.num_steps
    if scale.pretraining.train.num_epochs:
        raise UserError("config.pretraining.train.num_epochs: a scale gives its steps: set train.num_steps instead")
    for point in scale.points:
        if abs(point * steps - round(point * steps)) > 1e-6 * steps:
            raise UserError(f"config.points: {point:g} of {steps} steps is not a whole number: choose another")
