"""Phases and learning rate: the original's formula, the modern one, restarts, resume."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from bert_jax.config import Config, OptimizerConfig, PhaseConfig, TrainConfig
from bert_jax.errors import UserError
from bert_jax.training.schedule import (
    Phase,
    RateSegment,
    learning_rate,
    learning_rate_schedule,
    phase_at,
    phases,
    rate_segments,
)
from tests.rounding import assert_rounded_alike, rounded

pytestmark = pytest.mark.numerics

# Relative to the peak: a quotient of steps, the difference to 1, a root and the product, and the peak is rounded too.
BOUND = rounded(5)


def make(*, steps: int, warmup: int, rate: float = 1e-4, items: tuple[PhaseConfig, ...] = (PhaseConfig(),)) -> Config:
    """Return a config of `steps` steps."""
    return Config(
        optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=warmup),
        train=TrainConfig(num_steps=steps, phases=items),
    )


def all_phases(config: Config) -> tuple[Phase, ...]:
    """Return the phases, with 20 predictions in 128 tokens."""
    return phases(config.train, default_predictions=lambda length, rate: round(length * (rate or 0.15)))


def segments(config: Config) -> tuple[RateSegment, ...]:
    """Return the parts of the learning rate."""
    return rate_segments(config.train, optimizer=config.optimizer, all_phases=all_phases(config))


def rates(config: Config, recipe: str) -> np.ndarray:
    """Return the rate of every step."""
    schedule = learning_rate_schedule(segments(config), recipe=recipe)
    return np.asarray(jax.jit(schedule)(np.arange(config.train.num_steps)))


def original_rate(step: int, *, steps: int, warmup: int, rate: float) -> float:
    """Return optimization.py's rate: a decay from step 0 on, replaced by the warm-up while that lasts."""
    decayed = rate * (1 - min(step, steps) / steps)
    return rate * step / warmup if step < warmup else decayed


def wsd(config: Config, *, decay: int) -> Config:
    """Return the config with a stable rate and a decay."""
    optimizer = dataclasses.replace(config.optimizer, schedule="wsd", decay_steps=decay)
    return dataclasses.replace(config, optimizer=optimizer)


@pytest.mark.parametrize("decay", [0, 1, 30, 90])
def test_wsd_stays_at_the_peak_and_decays_by_one_minus_the_square_root(decay: int) -> None:
    expected = [
        2e-4 * ((step + 1) / 10 if step < 10 else 1 - np.sqrt(max(step - (100 - decay), 0) / max(decay, 1)))
        for step in range(100)
    ]
    actual = rates(wsd(make(steps=100, warmup=10, rate=2e-4), decay=decay), "modern")
    assert_rounded_alike(actual, expected, bound=2e-4 * BOUND)


def test_a_decay_that_starts_before_the_warm_up_ends_is_refused() -> None:
    with pytest.raises(UserError, match=r"decay_steps=91 is more than the 90 steps between the warm-up and the end"):
        segments(wsd(make(steps=100, warmup=10), decay=91))


def test_a_phase_has_the_predictions_of_its_masking_rate() -> None:
    items = (PhaseConfig(fraction=0.5, masking_rate=0.3), PhaseConfig(fraction=0.5))
    assert [phase.max_predictions_per_seq for phase in all_phases(make(steps=10, warmup=1, items=items))] == [38, 19]


def test_original_recipe_equals_the_originals_formula() -> None:
    expected = [original_rate(step, steps=1000, warmup=100, rate=1e-4) for step in range(1000)]
    values = rates(make(steps=1000, warmup=100), "original")
    assert_rounded_alike(values, expected, bound=1e-4 * BOUND)
    assert values[0] == 0.0


def test_original_recipe_drops_at_the_end_of_the_warm_up() -> None:
    values = rates(make(steps=1000, warmup=100), "original")
    assert values[99] == pytest.approx(0.99e-4, abs=1e-4 * BOUND)
    assert values[100] == pytest.approx(0.90e-4, abs=1e-4 * BOUND)
    assert np.diff(values)[99] < -0.08e-4


def test_modern_recipe_is_continuous_and_peaks_at_the_given_rate() -> None:
    values = rates(make(steps=1000, warmup=100), "modern")
    assert values[0] == pytest.approx(1e-6, abs=1e-4 * BOUND)
    assert values.max() == values[99] == values[100] == pytest.approx(1e-4, rel=BOUND)
    assert np.abs(np.diff(values)).max() <= 1e-6 + 2 * 1e-4 * BOUND
    assert_rounded_alike(np.diff(values[100:]), np.full(899, -1e-4 / 900), bound=2 * 1e-4 * BOUND)
    assert values[-1] == pytest.approx(1e-4 / 900, abs=1e-4 * BOUND)


@pytest.mark.parametrize("recipe", ["original", "modern"])
def test_without_warm_up_the_first_step_has_the_whole_rate(recipe: str) -> None:
    assert rates(make(steps=50, warmup=0), recipe)[0] == pytest.approx(1e-4, rel=BOUND)


def test_the_rate_behind_the_last_step_is_zero() -> None:
    config = make(steps=50, warmup=5)
    schedule = learning_rate_schedule(segments(config), recipe="modern")
    assert float(schedule(50)) == float(schedule(10**6)) == 0.0


def test_phases_of_the_paper_meet_at_nine_tenths() -> None:
    first, second = all_phases(Config())
    assert first == Phase(start=0, end=900_000, max_seq_length=128, max_predictions_per_seq=19, batch_size=256)
    assert (second.start, second.end, second.max_seq_length) == (900_000, 1_000_000, 512)


def test_one_schedule_runs_through_phases_that_name_no_rate() -> None:
    halves = (PhaseConfig(fraction=0.9), PhaseConfig(fraction=0.1, max_seq_length=512))
    for recipe in ("original", "modern"):
        whole = rates(make(steps=1000, warmup=100), recipe)
        np.testing.assert_array_equal(rates(make(steps=1000, warmup=100, items=halves), recipe), whole)


@pytest.mark.parametrize(
    ("shares", "steps"), [((0.1,) * 10, 7), ((0.9, 0.1), 3), ((1 / 3,) * 3, 1000), ((0.5, 0.5), 1)]
)
def test_every_step_belongs_to_one_phase(shares: tuple[float, ...], steps: int) -> None:
    config = make(steps=steps, warmup=0, items=tuple(PhaseConfig(fraction=share) for share in shares))
    parts = all_phases(config)
    assert parts[0].start == 0
    assert parts[-1].end == steps
    for before, after in itertools.pairwise(parts):
        assert before.end == after.start
    for step in range(steps):
        owners = [phase for phase in parts if phase.start <= step < phase.end]
        assert owners == [phase_at(parts, step=step)]


def test_a_phase_has_its_own_batch_and_predictions_or_the_common_ones() -> None:
    items = (
        PhaseConfig(fraction=0.5, batch_size=64, max_predictions_per_seq=7),
        PhaseConfig(fraction=0.5, max_seq_length=512),
    )
    first, second = all_phases(make(steps=10, warmup=0, items=items))
    assert (first.batch_size, first.max_predictions_per_seq) == (64, 7)
    assert (second.batch_size, second.max_predictions_per_seq) == (256, 77)


RESTART = (
    PhaseConfig(fraction=0.9, learning_rate=6e-3, warmup_steps=30),
    PhaseConfig(fraction=0.1, max_seq_length=512, learning_rate=4e-3, warmup_steps=5),
)


@pytest.mark.parametrize("recipe", ["original", "modern"])
def test_a_phase_that_names_its_rate_starts_anew(recipe: str) -> None:
    values = rates(make(steps=100, warmup=10_000, items=RESTART), recipe)
    first = rates(make(steps=90, warmup=30, rate=6e-3), recipe)
    second = rates(make(steps=10, warmup=5, rate=4e-3), recipe)
    assert_rounded_alike(values, np.concatenate([first, second]), bound=6e-3 * BOUND)


def test_a_phase_behind_a_restart_goes_on_with_it() -> None:
    items = (
        PhaseConfig(fraction=0.5),
        PhaseConfig(fraction=0.25, learning_rate=1e-2, warmup_steps=2),
        PhaseConfig(fraction=0.25),
    )
    values = rates(make(steps=80, warmup=8, items=items), "modern")
    expected = [rates(make(steps=40, warmup=n, rate=r), "modern") for n, r in ((8, 1e-4), (2, 1e-2))]
    assert_rounded_alike(values, np.concatenate(expected), bound=1e-2 * BOUND)


def test_resuming_in_the_middle_gives_the_same_bits() -> None:
    config = make(steps=100, warmup=0, items=RESTART)
    for recipe in ("original", "modern"):
        schedule = jax.jit(learning_rate_schedule(segments(config), recipe=recipe))
        whole = [np.asarray(schedule(np.int32(step))) for step in range(100)]
        fresh = jax.jit(learning_rate_schedule(segments(config), recipe=recipe))
        for step in (0, 29, 30, 57, 89, 90, 94, 95, 99):
            assert np.asarray(fresh(np.int32(step))).tobytes() == whole[step].tobytes()


def test_a_warm_up_longer_than_its_steps_is_one_clear_line() -> None:
    config = make(steps=50, warmup=51)
    with pytest.raises(UserError, match=r"config\.optimizer\.warmup_steps=51 .* 50 steps") as caught:
        segments(config)
    assert "\n" not in str(caught.value)
    fits = make(steps=50, warmup=50)
    segments(fits)


def test_a_phases_own_warm_up_that_is_too_long_is_named_as_such() -> None:
    items = (RESTART[0], dataclasses.replace(RESTART[1], warmup_steps=11))
    config = make(steps=100, warmup=0, items=items)
    with pytest.raises(UserError, match=r"config\.train\.phases\[1\]\.warmup_steps=11 .* 10 steps"):
        segments(config)


@pytest.mark.parametrize("recipe", ["original", "modern"])
@pytest.mark.parametrize(("total", "warmup"), [(1000, 100), (37, 0), (3, 3)])
def test_traced_numbers_give_the_bits_of_those_that_python_knows(recipe: str, total: int, warmup: int) -> None:
    steps, peak = np.arange(total), 3e-5

    def known(steps: Any) -> jax.Array:
        return learning_rate(steps, peak=peak, warmup=warmup, total=total, recipe=recipe)

    def traced(steps: Any, *numbers: jax.Array) -> jax.Array:
        return learning_rate(steps, peak=numbers[0], warmup=numbers[1], total=numbers[2], recipe=recipe)

    given = [jax.numpy.float32(number) for number in (peak, warmup, total)]
    assert np.asarray(known(steps)).max() > 0
    np.testing.assert_array_equal(traced(steps, *given), known(steps))
    # A compiler may multiply by the reciprocal of a divisor that it knows (jax 0.7.2 does): four roundings instead of
    # three, each of a share of the peak between 0 and 1.
    bound = (4 + 3) * np.finfo(np.float32).eps / 2 * peak
    np.testing.assert_allclose(jax.jit(traced)(steps, *given), jax.jit(known)(steps), rtol=0, atol=float(bound))
