"""Check `step`: whole training steps over all devices, timed, compared with what `plan` projects for the chip."""

import dataclasses
import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert_jax.chips import peak_flops
from bert_jax.config import Config, from_config_dict
from bert_jax.diagnosis import children, run_configs
from bert_jax.diagnosis.devices import topology_of
from bert_jax.diagnosis.results import CheckResult, Context, failed, ok
from bert_jax.json_files import load_json
from bert_jax.model.architectures import architecture_of
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.types import Rows

_SPECIAL = SpecialIds(cls_id=101, sep_id=102, mask_id=103, pad_id=0, vocab_size=0)
_FIRST_WORD = 1000  # ids below are special or unused in the released vocabularies
_ROUNDS, _ROUND_SECONDS, _MOST_STEPS = 5, 2.0, 50


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of a step (median of rounds, and all rounds), of the first one, the last loss, bytes at the peak."""

    seconds: float
    rounds: tuple[float, ...]
    first_seconds: float
    loss: float
    peak_bytes: int | None


def check(context: Context) -> CheckResult:
    """Measure the step, then ask `plan` for its projection.

    Raises:
      UserError: if the program does not divide over the devices.
    """
    devices = jax.devices()
    config = from_config_dict(run_configs.step_config(devices[0].platform, devices=len(devices)))
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
    measured = measure(program)
    projection, reason = project(context) if context.hosts.is_main else (None, "")
    return describe(config, program=program, measured=measured, projection=projection, reason=reason)


def measure(program: PretrainingProgram) -> Measured:
    """Compile and time the step on random words."""
    phase, vocab_size = program.phases[0], program.config.model.vocab_size
    step = program.train_step(phase, special=dataclasses.replace(_SPECIAL, vocab_size=vocab_size))
    rows = random_rows(phase.batch_size, length=phase.max_seq_length, vocab_size=vocab_size)
    on_devices = Rows(**meshes.whole_to_global(rows, mesh=program.mesh))
    state = program.random_state()
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, on_devices))
    first = time.perf_counter() - start
    start = time.perf_counter()
    state, output = jax.block_until_ready(step(state, on_devices))
    # Every host takes as many steps: they wait for each other in each.
    steps = steps_per_round(time.perf_counter() - start)
    rounds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(steps):
            state, output = step(state, on_devices)
        jax.block_until_ready(state)
        rounds.append((time.perf_counter() - start) / steps)
    mean = output.means["loss"]
    memory = jax.local_devices()[0].memory_stats() or {}
    return Measured(
        seconds=statistics.median(rounds),
        rounds=tuple(rounds),
        first_seconds=first,
        loss=float(mean.total / mean.weight),
        peak_bytes=memory.get("peak_bytes_in_use"),
    )


def steps_per_round(seconds: float) -> int:
    """Return how many steps a round takes, the same on all hosts: by the slowest step of any."""
    if jax.process_count() > 1:
        seconds = float(np.max(multihost_utils.process_allgather(np.float32(seconds))))
    return max(1, min(_MOST_STEPS, int(_ROUND_SECONDS / seconds)))


def describe(
    config: Config, *, program: PretrainingProgram, measured: Measured, projection: dict[str, Any] | None, reason: str
) -> CheckResult:
    """Return the result; without a `projection` there is a `reason`."""
    phase, model = program.phases[0], config.model
    devices = jax.devices()
    flops = architecture_of(model).train_flops_per_row(
        model,
        max_seq_length=phase.max_seq_length,
        max_predictions=program.max_predictions(phase),
        instances=1,
        attended_share=1.0,
    )
    peak = peak_flops(devices[0].device_kind)
    rate = phase.batch_size / measured.seconds
    mfu = f"MFU {rate * flops / peak / len(devices):.1%}" if peak else "MFU unknown (no data sheet's peak)"
    spread = f"{min(measured.rounds) * 1e3:.2f} to {max(measured.rounds) * 1e3:.2f}"
    lines = [
        f"{model.num_hidden_layers} layers of {model.hidden_size}, {model.dtype}, dropout "
        f"{model.hidden_dropout_prob:g}; {phase.batch_size} sequences of {phase.max_seq_length} per step over "
        f"{len(devices)} device{'s' if len(devices) > 1 else ''}",
        f"{measured.seconds * 1e3:.2f} ms per step (rounds: {spread}); first step {measured.first_seconds:.0f} s",
        f"{rate:,.1f} sequences/s, {rate * phase.max_seq_length:,.0f} tokens/s, "
        f"{rate * flops / 1e12:.3g} model TFLOP/s, {mfu}; loss {measured.loss:.3f}",
    ]
    if measured.peak_bytes:
        lines.append(f"peak of memory on a device: {measured.peak_bytes / 2**30:.2f} GiB")
    compared = ", no projection"
    if projection is None:
        lines.append(f"no projection: {reason}")
    else:
        ratio = measured.seconds / projection["step_seconds"]
        compared = f", {ratio:.2f} times the projected time"
        lines.append(
            f"plan projects {projection['step_seconds'] * 1e3:.2f} ms, {projection['sequences_per_second']:,.1f} "
            f"sequences/s, MFU {projection['mfu']:.1%}, {projection['hbm']['total_bytes'] / 2**30:.2f} GiB"
        )
    if not math.isfinite(measured.loss):
        return failed(f"the loss is {measured.loss} after some steps from random weights", lines)
    return ok(f"{measured.seconds * 1e3:.1f} ms, {rate:,.0f} sequences/s, {mfu.partition(' (')[0]}{compared}", lines)


def project(context: Context) -> tuple[dict[str, Any] | None, str]:
    """Return what `plan` says of the step's only phase, or None and why there is no projection."""
    devices = jax.devices()
    topology = topology_of(devices)
    if topology is None:
        return None, f"plan compiles for whole slices of TPUs, not for {len(devices)} x {devices[0].device_kind}"
    log = context.workdir / "plan.log"
    config = f"{Path(run_configs.__file__)}:step,tpu,{len(devices)}"
    arguments = ["bert_jax.plan", f"--config={config}", f"--topology={topology.name}"]
    try:
        # All the time that is left, for this is the last check: with the options that hide communication the compiler
        # takes several times as long (benchmarks/RESULTS.md).
        children.run(arguments, log=log, seconds=context.seconds_left(), environment={"JAX_PLATFORMS": "cpu"})
        phase = load_json(children.output_of(log), form=dict[str, Any])["phases"][0]
    except (children.ChildFailed, ValueError, LookupError) as error:
        return None, str(error)
    return (phase, "") if "step_seconds" in phase else (None, f"the step does not fit: {phase.get('advice')}")


def random_rows(batch: int, *, length: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Return full sequences of random words, [CLS] A [SEP] B [SEP], as the fields of `Rows`."""
    rng = np.random.default_rng(0)
    ids = rng.integers(min(_FIRST_WORD, vocab_size // 2), vocab_size, (batch, length), dtype=np.int32)
    half = length // 2
    ids[:, 0], ids[:, half - 1], ids[:, -1] = _SPECIAL.cls_id, _SPECIAL.sep_id, _SPECIAL.sep_id
    return {
        "input_ids": ids,
        "segment_lengths": np.tile(np.array([[[half, length - half]]], np.int32), (batch, 1, 1)),
        "next_sentence_labels": rng.integers(0, 2, (batch, 1), dtype=np.int32),
        "word_starts": np.ones_like(ids, bool),
    }
