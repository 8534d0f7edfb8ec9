"""Notes of a plan about chips that wait for communication: how long, for which collectives, and what helps."""

from typing import Any

from bert_jax.planning.collectives import LINKS, SYNCHRONOUS

_MUCH_WAITING = 0.25  # of a step


def waiting_notes(phases: list[dict[str, Any]]) -> list[str]:
    """Return a note for each phase whose chips wait for communication for much of a step.

    It names the class of collectives that they wait for longest, and whether the links or the order of work are the
    limit: no schedule hides communication that takes longer than the computation.
    """
    notes = []
    for phase in phases:
        step, waiting = phase.get("step_seconds", 0.0), phase.get("exposed_collective_seconds", 0.0)
        if waiting > _MUCH_WAITING * step:
            longest = max(phase["collectives"], key=lambda item: item["exposed_seconds"])
            notes.append(
                f"phase {phase['phase']}: {waiting / step:.0%} of a step is waiting for communication, most of it "
                f"({longest['exposed_seconds'] * 1e3:.1f} of {waiting * 1e3:.1f} ms) for {_name(longest)}"
                f"{_limit(longest)}; {_remedy(phase)}"
            )
    return notes


def _name(item: dict[str, Any]) -> str:
    where = "chips" if item["network"] == LINKS else "slices"
    return f"{item['kind']} over {item['chips']} {where}"


def _limit(item: dict[str, Any]) -> str:
    return f" (limit: {item['limited_by']})" if item["limited_by"] else ""


def _remedy(phase: dict[str, Any]) -> str:
    rows, computing = phase["batch_size_per_chip"], phase["compute_seconds"]
    busy = sum(item["seconds"] for item in phase["collectives"])
    more = ",".join(f"{factor * rows:g}" for factor in (2, 4, 8))
    batch = (
        f"use fewer chips, or a larger batch (--sweep='batch={more}' compares: each value is compiled and takes as "
        "long as this plan; accumulation does not change what a step sends)"
    )
    if busy > computing:
        return (
            f"communication takes {busy * 1e3:.1f} ms and computation {computing * 1e3:.1f}: {rows:g} sequences per "
            f"chip are too few to hide it: {batch}"
        )
    synchronous = sum(item["exposed_seconds"] for item in phase["collectives"] if item["limited_by"] == SYNCHRONOUS)
    if synchronous > phase["exposed_collective_seconds"] / 2:
        return (
            "the chips could compute meanwhile, but the compiler made it synchronous: try other "
            f"--config.mesh.compiler_options; or {batch}"
        )
    return batch
