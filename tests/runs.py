"""Run commands as a user does, each a process of its own, on a model of a few thousand parameters."""

import os
import subprocess
import sys
from pathlib import Path

from bert_jax.diagnosis import resume
from tests import command_server

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "model.vocab_size=512",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1",
    "train.batch_size=16",
    "train.phases[0].max_seq_length=32",
    "optimizer.warmup_steps=2",
    "eval.max_examples=32",
    "log.report=False",
)


def train_command(workdir: Path, *overrides: str, data: Path | None = None) -> list[str]:
    """Return the command of a tiny run; later overrides win."""
    fields = [*TINY, *([f"data.directory={data}"] if data else []), *overrides]
    return [
        sys.executable,
        "-m",
        "bert_jax.train",
        "--config=configs/tiny_cpu.py",
        f"--workdir={workdir}",
        *(f"--config.{field}" for field in fields),
    ]


def environment(devices: int = 1) -> dict[str, str]:
    """Return the environment of a process with `devices` fake CPU devices."""
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags = " ".join([*others, f"--xla_force_host_platform_device_count={devices}"])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def run(
    command: list[str], *, devices: int = 1, timeout: float = 300, cwd: Path = ROOT, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `text` as its standard input, and return status and output."""
    if command[1] == "-m":
        return command_server.run(command, cwd=cwd, env=environment(devices), timeout=timeout, text=text)
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(devices),
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


figures, checksums = resume.metrics_of, resume.checksums_of


def newest_arrays(workdir: Path) -> dict[str, bytes]:
    """Return the bytes of every array of the newest checkpoint, whatever mesh wrote it."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    directory = workdir / "checkpoints" / str(max(steps)) / "state"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved)
        state = checkpointer.restore(directory, target)
    named = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in named}
