"""Time the host's part of a fine-tuning step: choose the examples, pack them, fill the arrays.

    python benchmarks/finetune_packing.py

`--before=FILE` also times an earlier version of bert_jax/finetuning/packing.py. Both must give the same arrays:

    git show COMMIT:bert_jax/finetuning/packing.py > before.py
    python benchmarks/finetune_packing.py --before=before.py

Lengths are random, with the means, standard deviations and limits of MRPC's pairs and SQuAD's windows of 384 tokens
under the released uncased vocabulary. Prints CPU milliseconds per step for each batch size, medians over rounds of
`--steps` steps, and one JSON object. The transfer to the device is not measured.
"""

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_jax.finetuning import packing
from bert_jax.tasks.interface import Instances

BATCHES = flags.DEFINE_list("batch_size", ["32", "64", "512"], "Examples per step.")
STEPS = flags.DEFINE_integer("steps", 30, "Steps per round.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds per batch size.")
BEFORE = flags.DEFINE_string("before", "", "An earlier version of bert_jax/finetuning/packing.py.")

EXAMPLES = 20_000
TASKS = {"mrpc": "classification", "squad": "span"}


def random_features(task: str) -> Instances:
    """Return instances of random ids with the lengths of the task."""
    rng = np.random.default_rng(0)
    if task == "mrpc":
        lengths = np.clip(rng.normal(53, 14, EXAMPLES), 20, 103).astype(int)
    else:
        lengths = np.clip(rng.lognormal(np.log(160), 0.4, EXAMPLES), 40, 384).astype(int)
    firsts = np.maximum(lengths // (2 if task == "mrpc" else 10), 3).astype(np.int32)
    targets = [0 if task == "mrpc" else (int(first), int(first)) for first in firsts]
    return Instances([rng.integers(5, 30522, n, dtype=np.int32) for n in lengths], firsts, targets)


def load_before(path: str) -> Any:
    """Import the module in a file."""
    spec = importlib.util.spec_from_file_location("packing_before", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # needed by dataclasses
    spec.loader.exec_module(module)
    return module


def milliseconds_per_step(module: Any, features: Instances, *, kind: str, batch_size: int, seed: int) -> float:
    """Return the mean CPU time of `--steps` steps."""
    shape = module.row_shape([features], batch_size=batch_size)
    order = np.random.default_rng(seed).permutation(EXAMPLES)  # once per epoch
    start = time.process_time()
    for step in range(STEPS.value):
        indices = order[(step * batch_size + np.arange(batch_size)) % EXAMPLES]
        module.packed_batch(features, indices.tolist(), shape=shape, kind=kind, multiple=1)
    return 1000 * (time.process_time() - start) / STEPS.value


def check_equal(first: Any, second: Any, features: Instances, *, kind: str, batch_size: int) -> None:
    """Compare one batch of both versions.

    Raises:
      ValueError: if they differ.
    """
    batches = [
        module.packed_batch(
            features, range(batch_size), shape=module.row_shape([features], batch_size=batch_size), kind=kind
        )
        for module in (first, second)
    ]
    for name, array in batches[0].arrays.items():
        if not np.array_equal(array, batches[1].arrays[name]):
            raise ValueError(f"the two versions differ in {name}")


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    versions = {"now": packing} | ({"before": load_before(BEFORE.value)} if BEFORE.value else {})
    results = []
    for task, kind in TASKS.items():
        features = random_features(task)
        for batch_size in map(int, BATCHES.value):
            if "before" in versions:
                check_equal(versions["before"], packing, features, kind=kind, batch_size=batch_size)
            times: dict[str, list[float]] = {name: [] for name in versions}
            for seed in range(ROUNDS.value):
                for name, module in versions.items():
                    times[name].append(
                        milliseconds_per_step(module, features, kind=kind, batch_size=batch_size, seed=seed)
                    )
            medians = {name: statistics.median(values) for name, values in times.items()}
            results.append({"task": task, "batch_size": batch_size, **medians})
            line = f"{task:6} batch {batch_size:4}  " + "  ".join(f"{n} {v:8.3f} ms" for n, v in medians.items())
            print(line + (f"  {medians['before'] / medians['now']:5.1f} times as fast" if "before" in medians else ""))
    print(json.dumps(results))


if __name__ == "__main__":
    app.run(main)
