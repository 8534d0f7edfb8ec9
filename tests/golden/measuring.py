"""Losses of golden runs, measured in a process of their own: `python -m tests.golden.measuring --threads=1 NAME...`.

Prints a JSON object per run: `batches`, a hash of what was trained on; `losses`, one per step; and with `--draws=N`
`moves`, how far each loss moves if rounding is different (`bounds.py` says what that is for).
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden import finetuning, pretraining
from tests.golden.bounds import neighbor


def trace(job: Any, *, initial: Any, steps: int, draw: int = 0) -> tuple[np.ndarray, str]:
    """Return the float32 losses of a job's first steps from `initial`, and a hash of the integers in its batches.

    With `draw` > 0 every parameter is moved to a neighboring float32 before every step, up or down at random.
    """
    state = jax.tree.map(jnp.array, initial)
    losses, seen = [], hashlib.sha256()
    for step, rows in zip(range(steps), job.batches(0), strict=False):
        seen.update(_integers(rows))
        if draw:
            state = state.replace(params=_nudged(state.params, rng=np.random.default_rng((draw, step))))
        state, output = job.train_step(step)(state, rows)
        losses.append(np.float32(output.means["loss"].total))
    return np.array(losses), seen.hexdigest()[:16]


def _integers(rows: Any) -> bytes:
    """Return the integers of a batch, without the empty rows that fill it up to a multiple of the devices."""
    lengths = np.asarray(rows.segment_lengths if hasattr(rows, "segment_lengths") else rows.lengths)
    used = lengths.reshape(len(lengths), -1).any(1)
    leaves = (np.asarray(leaf)[used] for leaf in jax.tree.leaves(rows))
    return b"".join(
        f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes() for leaf in leaves if leaf.dtype.kind in "iub"
    )


def _nudged(params: Any, *, rng: np.random.Generator) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(neighbor(np.asarray(leaf), rng=rng)), params)


def measure(name: str, *, draws: int = 0, **changes: Any) -> dict[str, Any]:
    """Return losses, moves and the hash of the batches of a run."""
    module = pretraining if name in pretraining.RUNS else finetuning
    with tempfile.TemporaryDirectory() as folder:
        job: Any = module.open_job(name, workdir=Path(folder), **changes)
        initial = jax.device_get(job.initial_state())
        losses, batches = trace(job, initial=initial, steps=module.STEPS)
        moves = np.zeros(len(losses))
        for draw in range(1, draws + 1):
            if name == finetuning.FROZEN:
                job = finetuning.open_job(name, workdir=Path(folder, str(draw)), draw=draw, **changes)
            moved, _ = trace(job, initial=initial, steps=module.STEPS, draw=draw)
            moves = np.maximum(moves, np.abs(moved.astype(np.float64) - losses))
    return {
        "name": name,
        "batches": batches,
        "losses": [float(str(loss)) for loss in losses],
        **({"moves": [float(f"{move:.1e}") for move in moves]} if draws else {}),
    }


def main() -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--threads", type=int, default=0, help="Processors to compute on; 0: all.")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--learning_rate_factor", type=float, default=1.0)
    parser.add_argument("--optimizer", default="")
    options = vars(parser.parse_args())
    threads = options.pop("threads")
    if threads and hasattr(os, "sched_setaffinity"):  # before jax makes its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in options.pop("names"):
        print(json.dumps(measure(name, **options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
