"""Kill a run with SIGKILL at random moments, resume it to its end, and compare it with an undisturbed run bit by bit.

    python benchmarks/resume.py --kills=10

Prints the number of kills, the newest checkpoint at each, and whether parameters, optimizer state and metrics agree.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.runs import ROOT, checksums, environment, figures, run, train_command

KILLS = flags.DEFINE_integer("kills", 10, "Kills before the run may finish.")
STEPS = flags.DEFINE_integer("steps", 3000, "Steps of the run.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments of kills.")
EVERY = flags.DEFINE_integer("checkpoint_every", 100, "Steps between checkpoints.")
LOG_EVERY = 10


def saved_step(workdir: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 if there is none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")] if workdir.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def interrupt(command: list[str], rng: random.Random) -> bool:
    """Start the run and kill it, in one of five cases during start-up, otherwise at a random moment of training.

    Returns whether it was still running.
    """
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0.0, 5.0))
        else:
            steps = rng.randrange(STEPS.value // KILLS.value)
            lines = (line for line in process.stdout if line.startswith("step "))
            for _, _ in zip(range(steps // LOG_EVERY), lines, strict=False):
                pass
            # A random moment within a step.
            time.sleep(rng.uniform(0.0, 0.2))
        running = process.poll() is None
        process.kill()
        return running


def main(argv: list[str]) -> None:
    """Run both, compare, and print the result."""
    del argv
    rng = random.Random(SEED.value)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare = [sys.executable, "-m", "bert_jax.prepare", "--input=embedded", f"--out={data}"]
        run([*prepare, "--vocab_size=512", "--max_seq_length=32", "--heldout_fraction=0.05"])
        steps = (
            f"train.num_steps={STEPS.value}",
            f"checkpoint.every={EVERY.value}",
            f"log.every={LOG_EVERY}",
            "eval.every=500",
        )
        undisturbed = run(train_command(Path(folder) / "whole", *steps, data=data), timeout=3600)
        assert undisturbed.returncode == 0, undisturbed.stderr
        command = train_command(Path(folder) / "killed", *steps, data=data)
        killed_at = []
        while len(killed_at) < KILLS.value:
            if not interrupt(command, rng):
                break
            killed_at.append(saved_step(Path(folder) / "killed"))
            print(f"kill {len(killed_at)}: the newest checkpoint is that of step {killed_at[-1]}", flush=True)
        last = run(command, timeout=3600)
        assert last.returncode == 0, last.stderr
        result = {
            "kills": len(killed_at),
            "newest_checkpoint_at_each_kill": killed_at,
            "state_bit_equal": checksums(Path(folder) / "killed") == checksums(Path(folder) / "whole"),
            "metrics_equal": figures(Path(folder) / "killed") == figures(Path(folder) / "whole"),
        }
        print(json.dumps(result))
        sys.exit(0 if result["state_bit_equal"] and result["metrics_equal"] else 1)


if __name__ == "__main__":
    app.run(main)
