"""Declare the whole run's phases and learning rate once: one list, one global step (paper A.2).

Linear warm-up, then linear decay to 0 at the last step. The `original` recipe decays from step 0 and only replaces the
rate during warm-up, so the rate drops by warmup/total at the end of warm-up, and its first step has rate 0
(optimization.py of google-research/bert); the `modern` one is continuous and starts at 1/warmup.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.config import OptimizerConfig, TrainConfig
from bert_jax.errors import UserError

_Number = float | Array  # in Python's hands, or traced


@dataclasses.dataclass(frozen=True)
class Phase:
    """Hold a part of the run with one batch shape: steps `start` to `end - 1`."""

    start: int
    end: int
    max_seq_length: int
    max_predictions_per_seq: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class RateSegment:
    """Hold a part of the run with one warm-up and decay."""

    start: int
    end: int
    learning_rate: float
    warmup_steps: int


def phases(train: TrainConfig, *, default_predictions: Callable[[int], int]) -> tuple[Phase, ...]:
    """Return the phases with their steps; boundaries are rounded to whole steps, the last phase ends at num_steps."""
    result: list[Phase] = []
    share, start = 0.0, 0
    for index, item in enumerate(train.phases):
        share += item.fraction
        last = index == len(train.phases) - 1
        end = train.num_steps if last else round(share * train.num_steps)
        predictions = item.max_predictions_per_seq or default_predictions(item.max_seq_length)
        batch_size = item.batch_size or train.batch_size
        result.append(Phase(start, end, item.max_seq_length, predictions, batch_size))
        start = end
    return tuple(result)


def phase_at(all_phases: tuple[Phase, ...], *, step: int) -> Phase:
    """Return the phase that takes step `step`, counted from 0."""
    return next((phase for phase in all_phases if step < phase.end), all_phases[-1])


def rate_segments(
    train: TrainConfig, *, optimizer: OptimizerConfig, all_phases: tuple[Phase, ...]
) -> tuple[RateSegment, ...]:
    """Return the parts of the learning-rate schedule: a phase that names its own rate begins a new one.

    Raises:
      UserError: if a warm-up is longer than its part.
    """
    segments = [RateSegment(0, 0, optimizer.learning_rate, optimizer.warmup_steps)]
    fields = ["config.optimizer.warmup_steps"]
    for index, (item, phase) in enumerate(zip(train.phases, all_phases, strict=True)):
        if item.learning_rate > 0:
            first = RateSegment(phase.start, phase.end, item.learning_rate, item.warmup_steps)
            segments = [first] if phase.start == 0 else [*segments, first]
            fields = [*fields[: len(segments) - 1], f"config.train.phases[{index}].warmup_steps"]
        segments[-1] = dataclasses.replace(segments[-1], end=phase.end)
    for segment, field in zip(segments, fields, strict=True):
        steps = segment.end - segment.start
        if segment.warmup_steps > steps:
            raise UserError(
                f"{field}={segment.warmup_steps} is more than the {steps} steps it belongs to: "
                f"set it to at most {steps}, a hundredth to a tenth of the steps is usual"
            )
    return tuple(segments)


def learning_rate_schedule(
    segments: tuple[RateSegment, ...], *, recipe: str
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Return the learning rate of the update that takes step `step` to `step + 1`."""

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step)
        value = jnp.zeros((), jnp.float32)
        for segment in segments:
            value = jnp.where((step >= segment.start) & (step < segment.end), _segment_rate(segment, step), value)
        return value

    def _segment_rate(segment: RateSegment, step: Int[Array, ""]) -> Float[Array, ""]:
        return learning_rate(
            step - segment.start,
            peak=segment.learning_rate,
            warmup=segment.warmup_steps,
            total=segment.end - segment.start,
            recipe=recipe,
        )

    return rate


def learning_rate(step: Array | int, *, peak: _Number, warmup: _Number, total: _Number, recipe: str) -> Array:
    """Return the float32 rate of the update from `step` to `step + 1`, steps counted from the start of the warm-up.

    It rises to `peak` over `warmup` steps and reaches 0 after `total`; the module says how the recipes differ. Numbers
    that Python knows and numbers that are traced give the same bits, unless the compiler turns a known divisor into its
    reciprocal (jax 0.7.2 does), which rounds once more.
    """
    here = jnp.asarray(step).astype(jnp.float32)
    if recipe == "original":
        rising, falling = here / _at_least_one(warmup), 1 - here / total
    else:
        rising, falling = (here + 1) / _at_least_one(warmup), (total - here) / _at_least_one(total - warmup)
    return peak * jnp.where(here < warmup, rising, falling)


def _at_least_one(value: _Number) -> _Number:
    return jnp.maximum(value, 1) if isinstance(value, jax.Array) else max(value, 1)
