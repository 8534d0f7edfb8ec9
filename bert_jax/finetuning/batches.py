"""Which examples each step of a run learns from: a function of (seed, step) alone."""

import numpy as np

from bert_jax.finetuning.settings import RunSettings


def num_steps(settings: RunSettings, *, examples: int) -> int:
    """Return the updates of a run: whole steps an epoch, at least one."""
    return max(1, round(steps_per_epoch(settings, examples=examples) * settings.num_epochs))


def steps_per_epoch(settings: RunSettings, *, examples: int) -> int:
    """Return the updates of an epoch, rounded to whole ones."""
    return max(1, round(examples / settings.batch_size))


def batch_examples(settings: RunSettings, *, examples: int, step: int) -> np.ndarray:
    """Return the examples of batch number `step`: the next stretch of the shuffled epochs."""
    first = step * settings.batch_size
    found: list[np.ndarray] = []
    while sum(map(len, found)) < settings.batch_size:
        epoch, offset = divmod(first + sum(map(len, found)), examples)
        left = settings.batch_size - sum(map(len, found))
        found.append(_shuffle(settings.seed, epoch, examples)[offset : offset + left])
    return np.concatenate(found)


_SHUFFLES: dict[tuple[int, int, int], np.ndarray] = {}


def _shuffle(seed: int, epoch: int, examples: int) -> np.ndarray:
    key = (seed, epoch, examples)
    if key not in _SHUFFLES:
        if len(_SHUFFLES) > 1:
            _SHUFFLES.clear()
        _SHUFFLES[key] = np.random.default_rng([seed, epoch]).permutation(examples)
    return _SHUFFLES[key]
