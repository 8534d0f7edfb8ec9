"""Measure the fraction of a training step's time that masking takes.

    python benchmarks/masking_share.py --model=base --max_seq_length=128 --batch_size=8

Times masking alone and the whole step on JAX's default device; medians of `--rounds` rounds.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags

from benchmarks.sides import SPECIAL, make_rows, num_predictions
from bert_jax.config import Config, MeshConfig, PhaseConfig, TrainConfig, model_preset
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.types import Rows

WHOLE_WORD = flags.DEFINE_bool("whole_word", False, "Mask whole words.")


def seconds(call: Callable[[], Any], *, rounds: int) -> float:
    """Return the median time of `call`, without compilation."""
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(argv: list[str]) -> None:
    """Time masking and the step, and print the result."""
    del argv
    options = flags.FLAGS
    phase = PhaseConfig(
        max_seq_length=options.max_seq_length, max_predictions_per_seq=num_predictions(options.max_seq_length)
    )
    config = Config(
        model=dataclasses.replace(model_preset(options.model), dtype="float32"),
        train=TrainConfig(num_steps=100_000, batch_size=options.batch_size, phases=(phase,)),
    )
    config = dataclasses.replace(config, masking=dataclasses.replace(config.masking, whole_word=WHOLE_WORD.value))
    program = PretrainingProgram(config, mesh=meshes.make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    rows = Rows(**meshes.to_global(make_rows(options.batch_size, options.max_seq_length), mesh=program.mesh))
    objective = program.objective(program.phases[0], special=SPECIAL)
    key = jax.random.key(0)
    mask = jax.jit(lambda batch: objective.prepare(batch, key=key))
    step = program.train_step(program.phases[0], special=SPECIAL)
    state = program.random_state()

    def train() -> Any:
        nonlocal state
        state, output = step(state, rows)
        return output

    masking, whole = seconds(lambda: mask(rows), rounds=options.rounds), seconds(train, rounds=options.rounds)
    result = {
        "device": jax.devices()[0].device_kind,
        "model": options.model,
        "whole_word": WHOLE_WORD.value,
        "masking_milliseconds": round(masking * 1e3, 3),
        "step_milliseconds": round(whole * 1e3, 1),
        "share": round(masking / whole, 6),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
