"""The examples of each training step, a function of (seed, step) alone."""

import numpy as np

from bert_jax.finetuning.settings import RunSettings


def num_steps(settings: RunSettings, *, examples: int) -> int:
    """Return the number of training steps of a run, at least one."""
    return max(1, round(steps_per_epoch(settings, examples=examples) * settings.num_epochs))


def steps_per_epoch(settings: RunSettings, *, examples: int) -> int:
    """Return the number of training steps per epoch, rounded, at least one."""
    return max(1, round(examples / settings.batch_size))


def batch_examples(settings: RunSettings, *, examples: int, step: int) -> np.ndarray:
    """Return the indices of the examples of batch `step`. Batches divide the sequence of shuffled epochs evenly."""
    first = step * settings.batch_size
    chunks: list[np.ndarray] = []
    while (size := sum(map(len, chunks))) < settings.batch_size:
        epoch, offset = divmod(first + size, examples)
        chunks.append(_shuffle(settings.seed, epoch, examples)[offset : offset + settings.batch_size - size])
    return np.concatenate(chunks)


_SHUFFLES: dict[tuple[int, int, int], np.ndarray] = {}  # the last two epochs


def _shuffle(seed: int, epoch: int, examples: int) -> np.ndarray:
    key = (seed, epoch, examples)
    if key not in _SHUFFLES:
        if len(_SHUFFLES) > 1:
            _SHUFFLES.clear()
        _SHUFFLES[key] = np.random.default_rng([seed, epoch]).permutation(examples)
    return _SHUFFLES[key]
