"""Run the launchers: dry, or against tools that are scripts."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FLAGS = ["--", "--config=configs/base_tpu.py", "--config.data.input=/mnt/share/*.txt", "--workdir=/mnt/share/run"]
SHOWN = "--config=configs/base_tpu.py '--config.data.input=/mnt/share/*.txt' --workdir=/mnt/share/run"

# What each launcher needs, in the order in which it asks.
NEEDS = {
    "tpu_vm.sh": {
        "PROJECT": "my-project",
        "ZONE": "europe-west4-b",
        "TPU_NAME": "pod",
        "ACCELERATOR_TYPE": "v5litepod-16",
        "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
        "SHARE": "10.0.0.2:/share",
    },
    "gce.sh": {
        "PROJECT": "my-project",
        "ZONE": "us-central1-a",
        "GROUP": "group",
        "HOSTS": "2",
        "MACHINE_TYPE": "g2-standard-48",
        "IMAGE_FAMILY": "images",
        "IMAGE_PROJECT": "image-project",
        "BUCKET": "gs://bucket/code",
        "SHARE": "10.0.0.2:/share",
    },
    "gke_xpk.sh": {
        "PROJECT": "my-project",
        "ZONE": "europe-west4-b",
        "CLUSTER": "cluster",
        "TPU_TYPE": "v5litepod-16",
        "WORKLOAD": "base",
        "IMAGE": "registry/bert_jax:1",
    },
}
STEP = {"gke_xpk.sh": ["run"]}
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")


def launch(script, *arguments, environment=None, path=None):
    """Run a launcher with nothing in its environment but what is given."""
    found = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    given = {"PATH": found, "HOME": os.environ.get("HOME", "/"), **(environment or {})}
    return subprocess.run(
        [LAUNCH / script, *arguments], env=given, capture_output=True, text=True, timeout=60, check=False
    )


def dry_run(script, *arguments, **environment):
    """Return the commands of a dry run, and what it notes between them."""
    given = {**NEEDS[script], **environment}
    result = launch(script, "--dry_run", *arguments, *FLAGS, environment=given)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace(str(ROOT), "REPOSITORY").splitlines()
    return [line for line in lines if not line.startswith("# ")], [line for line in lines if line.startswith("# ")]


# Whole runs. `gcloud` and others are a script that answers from lines in a file:
# "<part of a command> => <output> [=> status]", the first line that fits, then used up unless it begins with "*".
GCLOUD = r"""#!/usr/bin/env python3
import pathlib, sys
here, command = pathlib.Path(__file__).parent, " ".join(sys.argv[1:])
if sys.argv[-1] == "-":  # docker build
    (here / "input").write_bytes(sys.stdin.buffer.read())
with open(here / "calls", "a") as calls:
    calls.write(command + "\n")
answers = (here / "answers").read_text().splitlines()
for number, line in enumerate(answers):
    part, output, *status = [text.strip() for text in line.split("=>")]
    if part.lstrip("*") in command:
        if not part.startswith("*"):
            del answers[number]
            (here / "answers").write_text("\n".join(answers))
        code = int(status[0]) if status else 0
        print(output.replace("|", "\n"), file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


def fake(tmp_path, answers, *names):
    """Put scripts with these names into a folder, which answer so."""
    for name in names:
        (tmp_path / name).write_text(GCLOUD)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").write_text("\n".join(answers))


def against_script(tmp_path, script, answers, *, names=("gcloud", "xpk", "docker"), **environment):
    """Run a launcher to its end and return its result and the commands that it gave."""
    fake(tmp_path, answers, *names)
    given = {**NEEDS[script], "POLL_SECONDS": "0", **environment}
    result = launch(script, *STEP.get(script, []), *FLAGS, environment=given, path=tmp_path)
    calls = (tmp_path / "calls").read_text().splitlines()
    return result, [line.removeprefix("compute ") for line in calls]


def count(calls, part):
    """Return how many commands contain `part`."""
    return sum(part in call for call in calls)
