"""Plans of several variants of a run, and the best: the most sequences per second among those that fit."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

from bert_jax.config import CHOICES, Config, validate
from bert_jax.errors import UserError
from bert_jax.parallel.axes import INNER_AXES, STATE_AXES
from bert_jax.planning.compiling import make_program
from bert_jax.planning.report import plan_run
from bert_jax.planning.scaling import scale_down
from bert_jax.planning.topology import Topology
from bert_jax.pretrain.open_values import preliminary
from bert_jax.progress import duration

_HELP = f"write it like 'batch=16,32;mesh={','.join(STATE_AXES)};remat=none,dots;attention=auto,reference'"


def parse_variants(text: str) -> dict[str, list[str]]:
    """Return the values of `--sweep` by name, in their order.

    Raises:
      UserError: for an unknown name or value.
    """
    variants: dict[str, list[str]] = {}
    for part in filter(None, text.split(";")):
        name, _, values = part.partition("=")
        name = name.strip()
        variants[name] = [value.strip() for value in values.split(",") if value.strip()]
        if name not in ("batch", "mesh", "remat", "attention") or not variants[name]:
            raise UserError(f"--sweep: {part!r}: name one of batch, mesh, remat, attention with values; {_HELP}")
        known = {
            "mesh": STATE_AXES,
            "remat": CHOICES["model.remat"],
            "attention": ("auto", "reference", "pallas"),
        }.get(name)
        for value in variants[name]:
            if value not in known if known else not value.isdecimal() or int(value) == 0:
                raise UserError(
                    f"--sweep: {name}={value}: write "
                    f"{'one of ' + ', '.join(known) if known else 'a positive whole number'}"
                )
    if not variants:
        raise UserError(f"--sweep is empty: {_HELP}")
    return variants


def vary(config: Config, *, variant: dict[str, str], topology: Topology) -> Config:
    """Return `config` with the values of one variant; `batch` is the sequences per chip and micro-batch."""
    model, train = config.model, config.train
    if "remat" in variant:
        model = dataclasses.replace(model, remat=variant["remat"])
    if "attention" in variant:
        model = dataclasses.replace(model, attention_implementation=variant["attention"])
    mesh = config.mesh
    if "mesh" in variant:
        axes = dict.fromkeys(INNER_AXES, 1) | {variant["mesh"]: -1}
        mesh = dataclasses.replace(mesh, **axes)
    if "batch" in variant:
        size = int(variant["batch"]) * topology.num_chips * train.gradient_accumulation_steps
        phases = tuple(dataclasses.replace(phase, batch_size=0) for phase in train.phases)
        train = dataclasses.replace(train, batch_size=size, phases=phases)
    return validate(dataclasses.replace(config, model=model, train=train, mesh=mesh))


def sweep(
    config: Config, *, topology: Topology, variants: dict[str, list[str]], report: Callable[[str], None]
) -> dict[str, Any]:
    """Return the plan of every combination of `variants`; "best" is the index of the fastest that fits."""
    combinations = [dict(zip(variants, values, strict=True)) for values in itertools.product(*variants.values())]
    config = preliminary(config)
    # Check all of them before compiling the first.
    configs = [vary(config, variant=variant, topology=topology) for variant in combinations]
    for varied in configs:
        scaling = scale_down(varied, topology=topology)
        make_program(scaling.config, topology=scaling.part)
    plans, start = [], time.monotonic()
    for number, (variant, varied) in enumerate(zip(combinations, configs, strict=True)):
        left = (time.monotonic() - start) / number * (len(combinations) - number) if number else None
        label = " ".join(f"{name}={value}" for name, value in variant.items())
        report(f"variant {number + 1} of {len(combinations)}: {label}" + (f", ETA {duration(left)}" if left else ""))
        plan = plan_run(varied, topology=topology, report=report)
        plans.append({"variant": variant, **plan})
    speeds = [_speed(plan) if plan["fits"] else 0.0 for plan in plans]
    best = speeds.index(max(speeds)) if max(speeds) > 0 else None
    return {"topology": topology.name, "fits": best is not None, "best": best, "plans": plans}


def _speed(plan: dict[str, Any]) -> float:
    """Return the mean sequences per second over the whole schedule."""
    rows = sum(phase["steps"] * phase["batch_size"] for phase in plan["phases"])
    return rows / sum(phase["seconds"] for phase in plan["phases"])


def as_table(result: dict[str, Any]) -> str:
    """Return the comparison as text: a line per variant and phase, the best variant marked."""
    lines = [f"{result['topology']}"]
    for number, plan in enumerate(result["plans"]):
        label = " ".join(f"{name}={value}" for name, value in plan["variant"].items())
        mark = "*" if number == result["best"] else " "
        for phase in plan["phases"]:
            if "step_seconds" not in phase or not phase["hbm"]["fits"]:
                lines.append(f"{mark} {label:<40} {phase['max_seq_length']:>4}  does not fit")
                continue
            lines.append(
                f"{mark} {label:<40} {phase['max_seq_length']:>4}  {phase['hbm']['total_bytes'] / 2**30:6.2f} GiB  "
                f"{phase['step_seconds'] * 1e3:8.1f} ms  {phase['sequences_per_second']:10,.0f} sequences/s  "
                f"MFU {phase['mfu']:.1%}"
            )
    lines.append("* fastest variant that fits" if result["best"] is not None else "no variant fits")
    return "\n".join(lines)
