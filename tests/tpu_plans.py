"""Plans in tests: configs made thin, and calls for the process with the TPU compiler."""

import dataclasses
import subprocess
import sys
from typing import Any

from bert_jax.config import Config, PhaseConfig
from bert_jax.planning import report as reports
from bert_jax.planning.topology import parse_topology
from tests.runs import ROOT


def thin(config: Config, *, chips: int, rows: int = 8) -> Config:
    """Keep widths, lengths, schedule and options; one scanned layer, few rows: it compiles in seconds, not minutes.

    Phases that then differ in nothing but their share of the steps are one.
    """
    parts = config.train.gradient_accumulation_steps
    batch = rows * chips * parts
    shares: dict[PhaseConfig, float] = {}
    for phase in config.train.phases:
        program = dataclasses.replace(phase, fraction=1.0, batch_size=0)
        shares[program] = shares.get(program, 0.0) + phase.fraction
    phases = tuple(dataclasses.replace(program, fraction=share) for program, share in shares.items())
    model = dataclasses.replace(config.model, num_hidden_layers=1, scan_layers=True, vocab_size=1024)
    return dataclasses.replace(
        config, model=model, train=dataclasses.replace(config.train, batch_size=batch, phases=phases)
    )


def plan_config(config: Config, topology: str) -> tuple[dict[str, Any], list[str]]:
    """Plan, in the process with the compiler."""
    said: list[str] = []
    return reports.plan_run(config, topology=parse_topology(topology), report=said.append), said


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the door."""
    return subprocess.run(
        [sys.executable, "-m", "bert_jax.plan", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
