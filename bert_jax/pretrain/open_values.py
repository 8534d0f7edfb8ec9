"""What a config leaves open until the data is known: the size of the vocabulary, and the steps of a number of epochs.

`config.model.vocab_size=0` is the size of the data set's vocabulary, `config.train.num_epochs` above 0 determines
`config.train.num_steps`. A run settles both once, before its first step, and keeps them.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from bert_jax.config import Config, from_saved, validate
from bert_jax.data.dataset_info import DatasetInfo, is_finished, load_dataset_info
from bert_jax.data.vocabulary import DEFAULT_VOCAB_SIZE
from bert_jax.runs.workdir import CONFIG, read_config

EPOCHS_NEED_DATA = (
    "config.train.num_epochs: the number of steps follows from the data set, which is not there yet; shown for "
    "num_steps={:,}"
)


def is_settled(config: Config) -> bool:
    """Return whether the steps are known: the config gives them, or its data set exists."""
    return not config.train.num_epochs or bool(finished_infos(config))


def finished_infos(config: Config) -> dict[int, DatasetInfo]:
    """Return the data set of each length in `config.data.directory`, none if one of them does not exist."""
    directory, lengths = config.data.directory, sorted({phase.max_seq_length for phase in config.train.phases})
    if not directory or not all(is_finished(directory, max_seq_length=length) for length in lengths):
        return {}
    return {length: load_dataset_info(directory, max_seq_length=length) for length in lengths}


def preliminary(config: Config) -> Config:
    """Return `config` settled by its data set if that exists, else with the usual vocabulary and `num_steps` as it is.

    Raises:
      UserError: if the data set cannot be read, or the settled config is impossible.
    """
    if infos := finished_infos(config):
        return settled(config, infos=infos)
    return _with(config, vocab_size=DEFAULT_VOCAB_SIZE, num_steps=config.train.num_steps)


def settled(config: Config, *, infos: Mapping[int, DatasetInfo]) -> Config:
    """Return `config` with its open values taken from the data set of each length.

    Raises:
      UserError: if the settled config is impossible, for example if its warm-up is longer than the epochs.
    """
    info = next(iter(infos.values()))
    return _with(
        config, vocab_size=max(info.vocab_size, info.max_token_id + 1), num_steps=_steps_of_epochs(config, infos=infos)
    )


def as_begun(config: Config, *, workdir: str | Path) -> Config:
    """Return `config` with the values that the run in `workdir` settled when it began."""
    if not (Path(workdir) / CONFIG).exists():
        return preliminary(config)
    saved: Config = read_config(workdir, read=from_saved)
    same_epochs = saved.train.num_epochs == config.train.num_epochs
    num_steps = saved.train.num_steps if same_epochs else config.train.num_steps
    return _with(config, vocab_size=saved.model.vocab_size, num_steps=num_steps)


def _with(config: Config, *, vocab_size: int, num_steps: int) -> Config:
    model, train = config.model, config.train
    if not model.vocab_size:
        model = dataclasses.replace(model, vocab_size=vocab_size)
    if train.num_epochs:
        train = dataclasses.replace(train, num_steps=num_steps)
    if model is config.model and train is config.train:
        return config
    return validate(dataclasses.replace(config, model=model, train=train))


def _steps_of_epochs(config: Config, *, infos: Mapping[int, DatasetInfo]) -> int:
    """Return the steps after which the phases together have gone through the text `num_epochs` times."""
    train = config.train
    epochs_per_step = sum(
        phase.fraction * (phase.batch_size or train.batch_size) / infos[phase.max_seq_length].num_train_rows
        for phase in train.phases
    )
    return max(1, math.ceil(train.num_epochs / epochs_per_step - 1e-9))
