"""The phases and the learning rate of a whole run, over one global step (paper A.2).

The rate warms up linearly, then decays linearly to 0 at the last step. The `original` recipe
(optimization.py of google-research/bert) decays from step 0 and replaces the rate during warm-up only: the first step
has rate 0, and the rate drops by warmup/total of the peak at the end of warm-up. The `modern` recipe is continuous and
starts at 1/warmup of the peak.

With `schedule=wsd` (warm-up, stable, decay: Hu et al. 2024, section 4) the rate stays at the peak after the warm-up and
decays over the last D steps by 1 - sqrt(x), x the fraction of them that is done (Haegele et al. 2024), as ModernBERT's
does. A run without decay can be continued by several others that decay.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.config import OptimizerConfig, TrainConfig, phase_ends
from bert_jax.errors import UserError

_Number = float | Array  # known to Python, or traced


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the run with one batch shape: steps `start` to `end - 1`."""

    start: int
    end: int
    max_seq_length: int
    max_predictions_per_seq: int
    batch_size: int
    masking_rate: float = 0.0  # 0: that of the run
    is_causal: bool = False  # whatever the objective of the run


@dataclasses.dataclass(frozen=True)
class RateSegment:
    """A part of the run with one warm-up and one decay; `decay_steps` is None for a linear one."""

    start: int
    end: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int | None = None


def phases(train: TrainConfig, *, default_predictions: Callable[[int, float], int]) -> tuple[Phase, ...]:
    """Return the phases. Their boundaries are rounded to whole steps; the last phase ends at `num_steps`.

    `default_predictions` returns the predictions for a length and a phase's masking rate (0: that of the run).
    """
    result: list[Phase] = []
    start = 0
    for item, end in zip(train.phases, phase_ends(train.phases, num_steps=train.num_steps), strict=True):
        predictions = item.max_predictions_per_seq or default_predictions(item.max_seq_length, item.masking_rate)
        batch_size = item.batch_size or train.batch_size
        is_causal = item.objective == "causal"
        result.append(Phase(start, end, item.max_seq_length, predictions, batch_size, item.masking_rate, is_causal))
        start = end
    return tuple(result)


def phase_at(all_phases: tuple[Phase, ...], *, step: int) -> Phase:
    """Return the phase of step `step`, counted from 0."""
    return next((phase for phase in all_phases if step < phase.end), all_phases[-1])


def rate_segments(
    train: TrainConfig, *, optimizer: OptimizerConfig, all_phases: tuple[Phase, ...]
) -> tuple[RateSegment, ...]:
    """Return the segments of the learning-rate schedule. A phase with a learning rate of its own starts a new segment.

    Raises:
      UserError: if a warm-up is longer than its segment, or warm-up and decay together are.
    """
    decay = optimizer.decay_steps if optimizer.schedule == "wsd" else None
    segments = [RateSegment(0, 0, optimizer.learning_rate, optimizer.warmup_steps, decay)]
    fields = ["config.optimizer.warmup_steps"]
    for index, (item, phase) in enumerate(zip(train.phases, all_phases, strict=True)):
        if item.learning_rate > 0:
            first = RateSegment(phase.start, phase.end, item.learning_rate, item.warmup_steps, decay)
            segments = [first] if phase.start == 0 else [*segments, first]
            fields = [*fields[: len(segments) - 1], f"config.train.phases[{index}].warmup_steps"]
        segments[-1] = dataclasses.replace(segments[-1], end=phase.end)
    for segment, field in zip(segments, fields, strict=True):
        steps = segment.end - segment.start
        if segment.warmup_steps > steps:
            raise UserError(
                f"{field}={segment.warmup_steps} is more than the {steps} steps of its part of the run: "
                f"set it to at most {steps}; 1 % to 10 % of the steps is usual"
            )
        if segment.warmup_steps + (segment.decay_steps or 0) > steps:
            raise UserError(
                f"config.optimizer.decay_steps={segment.decay_steps} is more than the {steps - segment.warmup_steps} "
                f"steps between the warm-up and the end of its part of the run: lower it, or {field}"
            )
    return tuple(segments)


def learning_rate_schedule(
    segments: tuple[RateSegment, ...], *, recipe: str
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """Return the schedule: a function of `step`, the learning rate of the update from `step` to `step + 1`."""

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
            decay=segment.decay_steps,
            recipe=recipe,
        )

    return rate


def learning_rate(
    step: Array | int, *, peak: _Number, warmup: _Number, total: _Number, recipe: str, decay: int | None = None
) -> Array:
    """Return the float32 rate of the update from `step` to `step + 1`, steps counted from the start of the warm-up.

    It rises to `peak` over `warmup` steps and reaches 0 after `total`, linearly or, if `decay` is given, over the last
    `decay` steps; the module docstring says how, and how the recipes differ. Python numbers and traced numbers give the
    same bits, unless the compiler turns a known divisor into its reciprocal (jax 0.7.2 does), which rounds once more.
    """
    position = jnp.asarray(step).astype(jnp.float32)
    if recipe == "original":
        rising, falling = position / _at_least_one(warmup), 1 - position / total
    else:
        rising, falling = (position + 1) / _at_least_one(warmup), (total - position) / _at_least_one(total - warmup)
    if decay is not None:
        done = jnp.maximum(position - (total - decay), 0) / max(decay, 1)
        falling = 1 - jnp.sqrt(done)
    return peak * jnp.where(position < warmup, rising, falling)


def _at_least_one(value: _Number) -> _Number:
    return jnp.maximum(value, 1) if isinstance(value, jax.Array) else max(value, 1)
