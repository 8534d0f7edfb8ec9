"""The launcher starts again what may be started again, and a run under random kills ends as the undisturbed one."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT, environment, figures, newest_arrays, train_command

LAUNCHER = [sys.executable, "launch/local_multihost.py"]
# Every host counts its starts in a file of its own and does what is written for that start: a status, or a signal.
SCRIPT = """
import os, pathlib, signal, sys, time
plan = sys.argv[2:][int(os.environ["JAX_PROCESS_ID"])].split(",")
path = pathlib.Path(sys.argv[1]) / os.environ["JAX_PROCESS_ID"]
start = int(path.read_text()) if path.exists() else 0
path.write_text(str(start + 1))
print("start", start, os.environ["JAX_NUM_PROCESSES"], flush=True)
counts = [pathlib.Path(sys.argv[1]) / str(host) for host in range(len(sys.argv[2:]))]
while not all(count.exists() and count.read_text() == str(start + 1) for count in counts):
    time.sleep(0.01)
action = plan[min(start, len(plan) - 1)]
if action == "wait":
    time.sleep(60)
if action == "stop":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
if action.startswith("-"):
    os.kill(os.getpid(), -int(action))
sys.exit(int(action))
"""


def launch(arguments: list[str], command: list[str], *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end."""
    environ = {name: value for name, value in environment().items() if name != "XLA_FLAGS"}
    command = [*LAUNCHER, *arguments, "--", *command]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout, check=False)


def play(tmp_path: Path, *plans: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Launch hosts that do what their plans say."""
    given = [f"--processes={len(plans)}", "--grace=5", *arguments]
    return launch(given, [sys.executable, "-c", SCRIPT, str(tmp_path), *plans])


@pytest.mark.parametrize(
    "plans",
    [("75,0", "75,0"), ("wait,0", "-9,0"), ("-9,0", "-9,0"), ("1,0", "-9,0"), ("75,0", "-6,0")],
    ids=["preempted", "one killed", "all killed", "one killed, the other failing", "one lost, the other aborting"],
)
def test_hosts_are_all_started_again_behind_a_kill_or_a_preemption(tmp_path: Path, plans: tuple[str, str]) -> None:
    done = play(tmp_path, *plans)
    assert done.returncode == 0, done.stdout
    assert [(tmp_path / str(host)).read_text() for host in range(2)] == ["2", "2"]
    assert "[launcher] finished: 2 starts" in done.stdout
    assert "start 1 2\n" in done.stdout
    assert "[host 1] start 1 2\n" in done.stdout


@pytest.mark.parametrize(("plans", "status"), [(("2", "75"), 2), (("0", "1"), 1), (("2", "-6"), 2)])
def test_a_mistake_is_not_tried_again(tmp_path: Path, plans: tuple[str, str], status: int) -> None:
    done = play(tmp_path, *plans)
    assert done.returncode == status
    assert f"not restarted: a host ended with status {status}" in done.stdout


def test_restarts_are_bounded(tmp_path: Path) -> None:
    done = play(tmp_path, "75", "75", arguments=("--max_restarts=2",))
    assert done.returncode == 75
    assert (tmp_path / "0").read_text() == "3"
    assert "2 restarts are used up" in done.stdout


def test_kills_are_drawn_up_to_their_number(tmp_path: Path) -> None:
    until_released = (
        "import pathlib, sys, time\n"
        "for _ in range(12000):\n"
        "    if pathlib.Path(sys.argv[1]).exists(): sys.exit(0)\n"
        "    time.sleep(0.01)\n"
        "sys.exit(1)"
    )
    arguments = ("--kill_every=0.5", "--kills=3", "--max_restarts=3", "--seed=4", "--grace=1")
    command = [*LAUNCHER, *arguments, "--", sys.executable, "-c", until_released, str(tmp_path / "release")]
    said = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "restarting (3 of at most 3)" in line:  # nothing kills the fourth start
                (tmp_path / "release").touch()
        assert process.wait(timeout=120) == 0
    assert "finished: 4 starts, 3 kills" in said[-1]
    assert len(re.findall(r"kill \d: SIG(?:TERM|KILL) to (?:all hosts|host [01])", "".join(said))) == 3


def test_a_signal_to_the_launcher_stops_the_hosts_and_starts_none(tmp_path: Path) -> None:
    command = [*LAUNCHER, "--", sys.executable, "-c", SCRIPT, str(tmp_path), "stop", "stop"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for seen, _ in enumerate(process.stdout):
            if seen == 1:  # both have begun; the handler is set a moment later
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert {(tmp_path / str(host)).read_text() for host in range(2)} == {"1"}


def test_a_dry_run_prints_each_command_and_starts_nothing(tmp_path: Path) -> None:
    done = play(tmp_path, "0", "0", arguments=("--dry_run", "--devices=4"))
    lines = done.stdout.splitlines()
    commands = [line for line in lines if line.startswith("JAX_PLATFORMS=cpu")]
    assert len(commands) == 2
    for host, line in enumerate(commands):
        assert "--xla_force_host_platform_device_count=4" in line
        assert "JAX_NUM_PROCESSES=2" in line
        assert f"JAX_PROCESS_ID={host}" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--processes=0"], "--processes=0: must be at least 1"), (["--devices=0"], "--devices=0"), ([], "no command")],
)
def test_what_cannot_be_launched_is_one_line(arguments: list[str], says: str) -> None:
    done = launch(arguments, [sys.executable, "-V"] if arguments else [])
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


KILLS, INTERVAL = 50, 50
SOAK = (
    "train.num_steps=8000",  # with room: 27 kills took 3,000 steps on two cores of 2026
    f"checkpoint.every={INTERVAL}",
    "eval.every=1000",
    "log.every=1",  # so that goodput.json knows the step at every kill
)


@pytest.mark.soak
def test_fifty_random_kills_change_nothing(tiny_dataset: Path, tmp_path: Path) -> None:
    undisturbed, soaked = tmp_path / "undisturbed", tmp_path / "soaked"
    whole = launch(["--processes=2"], train_command(undisturbed, *SOAK, data=tiny_dataset), timeout=3600)
    assert whole.returncode == 0, whole.stdout[-3000:]
    kills = ["--processes=2", f"--kills={KILLS}", "--kill_every=12", "--max_restarts=200", "--seed=20261125"]
    done = launch(kills, train_command(soaked, *SOAK, data=tiny_dataset), timeout=7200)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{KILLS} kills" in done.stdout
    assert newest_arrays(soaked) == newest_arrays(undisturbed)
    assert figures(soaked) == figures(undisturbed)
    record = json.loads((soaked / "goodput.json").read_text())
    print("\n".join(line for line in done.stdout.splitlines() if not line.startswith(("step", "training waits"))))
    print(f"starts that reached a step {record['starts']}, steps lost {record['lost_steps']}, ", end="")
    print(f"most at once {record['most_lost_steps']}, checkpoint interval {INTERVAL}")
    # A checkpoint begun at an interval's end is written while the next interval runs; the one after waits for it.
    assert record["most_lost_steps"] < 2 * INTERVAL
