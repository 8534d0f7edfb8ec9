"""Time the host side of a fine-tuning step: choose the examples, pack them, fill the rows.

    python benchmarks/finetune_packing.py

With `--before=FILE`, also a former version of bert_jax/finetuning/packing.py; the two take turns and must agree:

    git show COMMIT:bert_jax/finetuning/packing.py > before.py
    python benchmarks/finetune_packing.py --before=before.py

Lengths are random, with the means, spreads and limits that MRPC's pairs and SQuAD's windows of 384 have with the
released uncased vocabulary. Prints for every batch size the medians of rounds of `--steps` steps, in milliseconds per
step of CPU time, and one JSON object. A step's transfer to the device is not part of it.
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
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of each size.")
BEFORE = flags.DEFINE_string("before", "", "A former version of bert_jax/finetuning/packing.py.")

EXAMPLES = 20_000
TASKS = {"mrpc": "classification", "squad": "span"}


def random_features(task: str) -> Instances:
    """Return instances of random ids, as long as the task's."""
    rng = np.random.default_rng(0)
    if task == "mrpc":
        lengths = np.clip(rng.normal(53, 14, EXAMPLES), 20, 103).astype(int)
    else:
        lengths = np.clip(rng.lognormal(np.log(160), 0.4, EXAMPLES), 40, 384).astype(int)
    firsts = np.maximum(lengths // (2 if task == "mrpc" else 10), 3).astype(np.int32)
    targets = [0 if task == "mrpc" else (int(first), int(first)) for first in firsts]
    return Instances([rng.integers(5, 30522, n, dtype=np.int32) for n in lengths], firsts, targets)


def load_before(path: str) -> Any:
    """Return the module in a file."""
    spec = importlib.util.spec_from_file_location("packing_before", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def milliseconds_per_step(module: Any, features: Instances, *, kind: str, batch_size: int, seed: int) -> float:
    """Return the CPU time of a step, mean over `--steps` of them."""
    shape = module.row_shape([features], batch_size=batch_size)
    order = np.random.default_rng(seed).permutation(EXAMPLES)  # once per epoch
    begun = time.process_time()
    for step in range(STEPS.value):
        chosen = order[(step * batch_size + np.arange(batch_size)) % EXAMPLES]
        module.packed_batch(features, chosen.tolist(), shape=shape, kind=kind, multiple=1)
    return 1000 * (time.process_time() - begun) / STEPS.value


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
            found = {name: statistics.median(values) for name, values in times.items()}
            results.append({"task": task, "batch_size": batch_size, **found})
            line = f"{task:6} batch {batch_size:4}  " + "  ".join(f"{n} {v:8.3f} ms" for n, v in found.items())
            print(line + (f"  {found['before'] / found['now']:5.1f} times as fast" if "before" in found else ""))
    print(json.dumps(results))


if __name__ == "__main__":
    app.run(main)
