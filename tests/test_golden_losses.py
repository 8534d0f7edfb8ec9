"""Losses are the golden ones: bit for bit on one lane, within what rounding can do elsewhere; real changes are not."""

import dataclasses
import os

import numpy as np
import pytest

from tests.golden import children, finetuning, pretraining, records
from tests.golden.bounds import loss_bounds
from tests.golden.measuring import measure
from tests.golden.records import GoldenLosses, read_losses

RUNS = [*pretraining.RUNS, *finetuning.RUNS]


def difference(measurement: dict, *, exact: bool) -> str:
    current = GoldenLosses.from_measured(measurement)
    return read_losses(current.name).difference(current.losses, batches=current.batches, exact=exact)


def test_every_run_has_its_file_and_every_file_its_run():
    assert {file.stem for file in records.LOSSES.glob("*.json")} == set(RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modern_mlm_nsp", "tags"])
def test_losses_here_lie_within_rounding_of_the_golden_ones(name: str):
    """The pre-training run on one device, the other on all: sums in another order."""
    assert not difference(measure(name), exact=False)


def test_a_learning_rate_a_thousandth_larger_is_noticed():
    assert "steps differ" in difference(measure("tags", learning_rate_factor=1.001), exact=False)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["modern_mlm_nsp", "modern_packed", "original_mlm_nsp", "modern_lamb"])
def test_a_learning_rate_a_thousandth_larger_is_noticed_in_pretraining(name: str):
    assert "steps differ" in difference(measure(name, learning_rate_factor=1.001), exact=False)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["modern_mlm_nsp", "classification"])
def test_an_optimizer_without_bias_correction_is_noticed_at_once(name: str):
    message = difference(measure(name, optimizer="bert_adam"), exact=False)
    # Losses before the first update, and after one of rate 0 (the warm-up begins there), cannot know.
    assert "the loss of step 1 " in message or "the loss of step 2 " in message


@pytest.mark.soak
def test_all_losses_have_the_golden_bits():
    if reason := children.why_not_exact():
        pytest.skip(reason)
    failures = [difference(measurement, exact=True) for measurement in children.measured(RUNS, exact=True)]
    assert len(failures) == len(RUNS)
    assert not any(failures), "\n".join(filter(None, failures))


@pytest.mark.soak
def test_all_losses_lie_within_rounding_of_the_golden_ones():
    too_narrow = "SSE4_2" in os.environ.get("XLA_FLAGS", "")  # children.py: no conversion to float16
    names = [name for name in RUNS if name != finetuning.FROZEN or not too_narrow]
    failures = [difference(measurement, exact=False) for measurement in children.measured(names, exact=False)]
    assert len(failures) == len(names)
    assert not any(failures), "\n".join(filter(None, failures))


def test_a_changed_loss_is_reported_with_run_step_distance_and_the_command():
    golden = read_losses("modern_mlm_nsp")
    losses, batches = golden.losses.copy(), golden.batches
    assert not golden.difference(losses, batches=batches, exact=True)
    losses[7] = np.nextafter(losses[7], np.float32(np.inf))
    message = golden.difference(losses, batches=batches, exact=True)
    for words in (
        "modern_mlm_nsp",
        "step 7 of 100",
        "bound 0",
        "1 steps differ",
        "python -m tests.golden --write losses",
    ):
        assert words in message
    assert not golden.difference(losses, batches=batches, exact=False)
    losses[9] += np.float32(1.01) * np.float32(loss_bounds(golden.losses, golden.moves)[9])
    assert "step 9 of 100" in golden.difference(losses, batches=batches, exact=False)
    losses[3] = np.nan
    assert "step 3 of 100" in golden.difference(losses, batches=batches, exact=False)


def test_other_batches_and_fewer_steps_are_reported_before_losses():
    golden = read_losses("modern_mlm_nsp")
    assert "data, packing or shuffling" in golden.difference(golden.losses, batches="0", exact=False)
    assert "99 losses" in golden.difference(golden.losses[1:], batches=golden.batches, exact=False)


@pytest.mark.parametrize("name", RUNS)
def test_a_file_is_what_its_record_is_written_as(name: str):
    file = records.LOSSES / f"{name}.json"
    assert file.read_text() == records.to_text(read_losses(name).to_json()) + "\n"


def test_bounds_grow_with_the_largest_move_so_far_and_never_vanish():
    golden = dataclasses.replace(
        read_losses("modern_mlm_nsp"), losses=np.ones(3, np.float32), moves=np.array([0, 1e-6, 0])
    )
    bounds = loss_bounds(golden.losses, golden.moves)
    assert 0 < bounds[0] < bounds[1] == bounds[2] < 1e-4
