"""Compare a GPU training step with HuggingFace PyTorch (SDPA, bfloat16 autocast, `torch.compile`, fused AdamW).

    python benchmarks/gpu_step.py --model=large --max_seq_length=128 --batch_size=256
    python benchmarks/gpu_step.py --max_seq_length=512 --batch_size=64 --data=PACKED_DATA_SET --side=ours

`sides.py` defines a step. Each side is a separate process. Both are compiled first and then take turns, so both must
fit in memory together. Prints one JSON object:

* medians of the rounds and their ratio;
* model FLOP/s (`model/bert/flops.py`; the masked-LM head only at the masked positions, for both sides) relative to the
  ceiling, the speed of a bfloat16 matmul of 8,192 x 8,192 x 8,192 measured between the rounds.

With `--data` our side reads its sequences from a data set of `prepare` (packed or not), and the results count its
instances. Needs torch, transformers and a CUDA build of jax.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import sides
from bert_jax.config import Config, DataConfig, PhaseConfig, TrainConfig, model_preset
from bert_jax.model.architectures import architecture_of

MODEL = flags.DEFINE_string("model", "large", "Model preset.")
LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens per sequence.")
BATCH = flags.DEFINE_integer("batch_size", 256, "Sequences per step.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each side.")
STEPS = flags.DEFINE_integer("steps", 10, "Steps per round.")
SIDES = flags.DEFINE_list("side", ["ours", "huggingface"], "Sides to time.")
DATA = flags.DEFINE_string("data", "", "A data set for our side instead of random tokens.")
SCAN = flags.DEFINE_bool("scan", False, "Ours with scanned layers.")
ATTENTION = flags.DEFINE_string("attention", "auto", "model.attention_implementation of ours.")
REMAT = flags.DEFINE_string("remat", "none", "model.remat of ours.")
MEMORY = flags.DEFINE_float("memory_fraction", 0.45, "Fraction of the GPU's memory for ours.")
PROFILE = flags.DEFINE_string("profile", "", "Write a profile of three steps of ours to this folder.")
WORKER = flags.DEFINE_bool("worker", False, "Internal: run one side, and for each line of input that many steps.")

CEILING_SIZE = 8192


@dataclasses.dataclass(frozen=True)
class Contents:
    """The average content of a sequence."""

    instances: float
    real_share: float  # fraction of tokens that are not padding
    flops: float  # model FLOPs


def load_rows() -> dict[str, np.ndarray]:
    """Return the batch of a step."""
    if not DATA.value:
        return sides.make_rows(BATCH.value, LENGTH.value)
    from bert_jax.data.loader import PretrainingBatches

    return PretrainingBatches(DATA.value, max_seq_length=LENGTH.value, batch_size=BATCH.value, seed=0)[0]


def our_config(rows: dict[str, np.ndarray]) -> Config:
    """Return our config for batches like `rows`."""
    slots = rows["segment_lengths"].shape[1]
    model = dataclasses.replace(
        model_preset(MODEL.value),
        scan_layers=SCAN.value,
        attention_implementation=ATTENTION.value,
        remat=REMAT.value,
        max_position_embeddings=max(512, LENGTH.value),
    )
    return Config(
        model=model,
        data=DataConfig(pack=slots > 1, max_instances_per_row=slots if slots > 1 else 0),
        train=TrainConfig(
            num_steps=100_000, batch_size=BATCH.value, phases=(PhaseConfig(max_seq_length=LENGTH.value),)
        ),
    )


def contents_of(rows: dict[str, np.ndarray]) -> Contents:
    """Count instances, real tokens and model FLOPs per sequence. An instance attends only to itself."""
    lengths = rows["segment_lengths"].sum(-1)
    instances = float((lengths > 0).sum(1).mean())
    model = model_preset(MODEL.value)
    flops = architecture_of(model).train_flops_per_row(
        model,
        max_seq_length=LENGTH.value,
        max_predictions=sides.num_predictions(LENGTH.value),
        instances=instances,
        attended_share=float(np.square(lengths).sum(1).mean()) / LENGTH.value**2,
    )
    return Contents(instances, float(lengths.sum(1).mean()) / LENGTH.value, flops)


def serve(side: str) -> None:
    """Compile a side. Then for each line of input, the number of steps, run the steps and print seconds per step."""
    rows = load_rows()
    start = time.monotonic()
    if side == "ours":
        take: Callable[[int], float] = sides.our_step(rows, config=our_config(rows))
    else:
        take = sides.their_step(rows, model=MODEL.value, device="cuda", autocast=True, compiled=True)
    loss = take(3)
    say(ready=True, loss=loss, compile_seconds=round(time.monotonic() - start, 1))
    if PROFILE.value and side == "ours":
        import jax

        with jax.profiler.trace(PROFILE.value):
            take(3)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = take(int(line))
        seconds = (time.perf_counter() - start) / int(line)
        say(seconds=seconds, loss=loss, **(measure_ceiling() if side == "ours" else {}))


def measure_ceiling() -> dict[str, float]:
    """Return the FLOP/s of a large matmul, as `ceiling`."""
    import jax
    import jax.numpy as jnp

    left, right = (jax.random.normal(jax.random.key(n), (CEILING_SIZE,) * 2, jnp.bfloat16) for n in range(2))
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(left, right))
    start, products = time.perf_counter(), 20
    for _ in range(products):
        last = multiply(left, right)
    jax.block_until_ready(last)
    return {"ceiling": 2 * CEILING_SIZE**3 * products / (time.perf_counter() - start)}


def say(**values: Any) -> None:
    """Print a line for the parent process."""
    print(json.dumps(values), flush=True)


class Side:
    """The process of a side."""

    def __init__(self, name: str):
        """Start the process. It compiles while others start."""
        environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(MEMORY.value)}
        arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--side")]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, f"--side={name}", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read(self) -> dict[str, Any]:
        """Return the next line that is a JSON object."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a side failed with status {self.process.wait()}: see its messages above")

    def take(self, steps: int) -> dict[str, Any]:
        """Run `steps` steps and return their measurements."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.read()


def main(argv: list[str]) -> None:
    """Time the sides alternately; print medians, ratio and FLOP/s relative to the ceiling."""
    del argv
    if WORKER.value:
        serve(SIDES.value[0])
        return
    sides_by_name = {name: Side(name) for name in SIDES.value}
    starts = {name: side.read() for name, side in sides_by_name.items()}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides_by_name}
    for _ in range(ROUNDS.value):
        for name, side in sides_by_name.items():
            rounds[name].append(side.take(STEPS.value))
    contents = contents_of(load_rows())
    ceilings = [measurement["ceiling"] for measurement in rounds.get("ours", [])]
    result: dict[str, Any] = {
        "model": MODEL.value,
        "max_seq_length": LENGTH.value,
        "batch_size": BATCH.value,
        "instances_per_row": round(contents.instances, 3),
        "real_token_share": round(contents.real_share, 4),
        "ceiling_tflops": round(statistics.median(ceilings) / 1e12, 1) if ceilings else None,
    }
    for name, measurements in rounds.items():
        seconds = [measurement["seconds"] for measurement in measurements]
        rows_per_second = BATCH.value / statistics.median(seconds)
        rate = contents.flops * rows_per_second
        result[name] = {
            "step_ms": round(statistics.median(seconds) * 1e3, 2),
            "step_ms_of_rounds": [round(value * 1e3, 2) for value in seconds],
            "rows_per_second": round(rows_per_second, 1),
            "sequences_per_second": round(rows_per_second * contents.instances, 1),
            "model_tflops": round(rate / 1e12, 1),
            "share_of_ceiling": round(rate / statistics.median(ceilings), 3) if ceilings else None,
            "loss": measurements[-1]["loss"],
            "compile_seconds": starts[name]["compile_seconds"],
        }
    if len(rounds) == 2:
        result["ratio"] = round(result["ours"]["rows_per_second"] / result["huggingface"]["rows_per_second"], 3)
    print(json.dumps(result, indent=2))
    for side in sides_by_name.values():
        side.process.stdin.close()  # type: ignore[union-attr]
        side.process.wait()


if __name__ == "__main__":
    app.run(main)
