"""Kill a run with SIGKILL at random moments until it is through, and compare with the undisturbed run, bit by bit.

    python benchmarks/resume.py --kills=10

Prints how many kills there were, the work lost at each, and whether parameters, optimiser state and metrics are equal.
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

KILLS = flags.DEFINE_integer("kills", 10, "Kills before the run is let through.")
STEPS = flags.DEFINE_integer("steps", 3000, "Steps of the run.")
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
EVERY = flags.DEFINE_integer("checkpoint_every", 100, "Steps between checkpoints.")


def saved_step(workdir: Path) -> int:
    """Return the newest complete checkpoint's step, 0 if there is none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")] if workdir.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def main(argv: list[str]) -> None:
    """Run both and compare."""
    del argv
    rng = random.Random(SEED.value)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare = [sys.executable, "-m", "bert_jax.prepare", "--input=embedded", f"--out={data}"]
        run([*prepare, "--vocab_size=512", "--max_seq_length=32", "--heldout_fraction=0.05"])
        steps = (f"train.num_steps={STEPS.value}", f"checkpoint.every={EVERY.value}", "log.every=10", "eval.every=500")
        begun = time.monotonic()
        undisturbed = run(train_command(Path(folder) / "whole", *steps, data=data), timeout=3600)
        assert undisturbed.returncode == 0, undisturbed.stderr
        whole = time.monotonic() - begun
        command = train_command(Path(folder) / "killed", *steps, data=data)
        killed_at = []
        while len(killed_at) < KILLS.value:
            with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
                try:
                    # Anywhere from the imports to the work of a tenth of the run behind the start-up.
                    process.wait(timeout=rng.uniform(1.0, 12.0 + whole / KILLS.value))
                    break
                except subprocess.TimeoutExpired:
                    process.kill()
            killed_at.append(saved_step(Path(folder) / "killed"))
            print(f"kill {len(killed_at)}: newest checkpoint is that of step {killed_at[-1]}", flush=True)
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
