"""A plan says for which collectives chips wait, and whether the links or the order of work are the limit."""

from typing import Any

import pytest

from bert_jax.planning.collectives import LINKS, QUEUED, SYNCHRONOUS
from bert_jax.planning.waiting import waiting_notes


def collective(kind: str, *, seconds: float, exposed: float, limit: str) -> dict[str, Any]:
    return {
        "kind": kind, "chips": 64, "network": LINKS, "seconds": seconds, "exposed_seconds": exposed, "limited_by": limit
    }  # fmt: skip


def phase(computing: float, *collectives: dict[str, Any]) -> dict[str, Any]:
    exposed = sum(item["exposed_seconds"] for item in collectives)
    return {
        "phase": 1, "batch_size_per_chip": 4, "compute_seconds": computing, "step_seconds": computing + exposed,
        "exposed_collective_seconds": exposed, "collectives": list(collectives),
    }  # fmt: skip


GATHER = collective("all-gather", seconds=0.004, exposed=0.002, limit=QUEUED)


def test_links_that_are_busy_longer_than_chips_compute_mean_too_small_a_batch() -> None:
    (note,) = waiting_notes(
        [phase(0.010, collective("all-reduce", seconds=0.012, exposed=0.006, limit=QUEUED), GATHER)]
    )
    assert "phase 1: 44% of a step is waiting for communication" in note
    assert "(6.0 of 8.0 ms) for all-reduce over 64 chips (limit: earlier collectives on the links)" in note
    assert "communication takes 16.0 ms and computation 10.0: 4 sequences per chip are too few to hide it" in note
    assert "--sweep='batch=8,16,32' compares: each value is compiled and takes as long as this plan" in note


def test_what_the_compiler_made_synchronous_is_not_blamed_on_the_batch() -> None:
    (note,) = waiting_notes([phase(0.020, collective("all-reduce", seconds=0.012, exposed=0.012, limit=SYNCHRONOUS))])
    assert "the compiler made it synchronous: try other --config.mesh.compiler_options" in note
    assert "too few" not in note


@pytest.mark.parametrize(
    "planned",
    [phase(0.040, GATHER), {"phase": 0, "batch_size_per_chip": 4, "hbm": {"fits": False}}, phase(0.040)],
)
def test_nothing_is_said_of_a_step_that_waits_little_or_does_not_fit(planned: dict[str, Any]) -> None:
    assert waiting_notes([planned]) == []
