"""Compare a training step on a CPU with HuggingFace PyTorch's `BertForPreTraining`.

    python benchmarks/cpu_step.py --model=mini --max_seq_length=128 --batch_size=32

Both sides have the same shapes and threads, compute in float32, and take turns, so that a drift of the machine's speed
affects both. `sides.py` defines a step. Prints medians and their ratio. Needs the parity extra.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import jax.numpy as jnp
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import sides
from bert_jax.config import Config, PhaseConfig, TrainConfig, model_preset

MODEL = flags.DEFINE_string("model", "mini", "Model preset.")
LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens per sequence.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Sequences per step.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each side.")
STEPS = flags.DEFINE_integer("steps", 2, "Steps per round.")
THREADS = flags.DEFINE_integer("threads", 2, "Threads of PyTorch; ours uses the cores available to the process.")
UNROLL = flags.DEFINE_bool("unroll", True, "Unroll the layers (faster than scanned ones on a CPU).")


def main(argv: list[str]) -> None:
    """Time both sides alternately, and print medians and ratio."""
    del argv
    import torch

    torch.set_num_threads(THREADS.value)
    jnp.zeros(()).block_until_ready()
    rows = sides.make_rows(BATCH.value, LENGTH.value)
    phase = PhaseConfig(max_seq_length=LENGTH.value, max_predictions_per_seq=sides.num_predictions(LENGTH.value))
    config = Config(
        model=dataclasses.replace(model_preset(MODEL.value), dtype="float32", scan_layers=not UNROLL.value),
        train=TrainConfig(num_steps=100_000, batch_size=BATCH.value, phases=(phase,)),
    )
    both = {
        "bert_jax": sides.our_step(rows, config=config),
        "huggingface": sides.their_step(rows, model=MODEL.value, device="cpu", autocast=False, compiled=False),
    }
    times: dict[str, list[float]] = {name: [] for name in both}
    for take in both.values():
        take(1)
    for _ in range(ROUNDS.value):
        for name, take in both.items():
            start = time.perf_counter()
            take(STEPS.value)
            times[name].append((time.perf_counter() - start) / STEPS.value)
    speed = {name: BATCH.value / statistics.median(values) for name, values in times.items()}
    ratios = [peer / own for own, peer in zip(times["bert_jax"], times["huggingface"], strict=True)]
    result = {
        "model": MODEL.value,
        "max_seq_length": LENGTH.value,
        "batch_size": BATCH.value,
        "sequences_per_second": {name: round(value, 2) for name, value in speed.items()},
        "ratio_of_medians": round(speed["bert_jax"] / speed["huggingface"], 2),
        "ratio_by_round": [round(value, 2) for value in ratios],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
