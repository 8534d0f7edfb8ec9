"""Several real processes: the same batches, the same end, one stop; who is missing or differs is named."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.rounding import NOTICED, sum_bound
from tests.runs import ROOT, environment, figures, run, train_command
from tests.test_distributed import free_address

# A gradient is a sum over 16 rows of 32 tokens, in another order on another number of hosts; 300 steps add up.
APART = 300 * sum_bound(16 * 32)
assert APART < NOTICED
SMALL = ("model.num_hidden_layers=1", "eval.every=1000", "log.every=1", "optimizer.warmup_steps=10")
STEPS = (*SMALL, "train.num_steps=300", "checkpoint.every=1000")


def start_hosts(
    commands: Sequence[list[str]], *, devices: int = 1, count: int | None = None
) -> list[subprocess.Popen[str]]:
    """Start a process a command, of `count` hosts in all."""
    address = free_address()
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(devices)
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count or len(commands)),
                "JAX_PROCESS_ID": str(index),
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, command in enumerate(commands)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], *, timeout: float = 300) -> list[tuple[int, str]]:
    """Wait for all and return statuses and outputs; none is left behind."""
    try:
        return [(process.wait(timeout), output) for process in processes for output in [process.communicate()[0]]]
    finally:
        for process in processes:
            process.kill()


def digest(tiny_dataset: Path, *, hosts: int, mesh: Sequence[int]) -> tuple[str, int]:
    """Return the digest of the global batches on 4 devices of so many hosts, and the rows that the first one read."""
    command = [sys.executable, str(ROOT / "tests" / "show_batches.py"), str(tiny_dataset), *map(str, mesh)]
    (status, output), *_ = finish(start_hosts([command] * hosts, devices=4 // hosts))
    assert status == 0, output
    found = re.search(r"digest (\w+) rows read here (\d+)", output)
    assert found, output
    return found.group(1), int(found.group(2))


def test_any_number_of_hosts_has_the_same_global_batches_and_reads_only_its_rows(tiny_dataset: Path) -> None:
    alone, rows = digest(tiny_dataset, hosts=1, mesh=(4, 1, 1))
    assert rows == 16
    assert digest(tiny_dataset, hosts=2, mesh=(2, 2, 1)) == (alone, 8)
    assert digest(tiny_dataset, hosts=4, mesh=(1, 2, 2)) == (alone, 8)  # pairs of hosts differ only along `tensor`


def stop_one(commands: list[list[str]], *, behind: str, host: int) -> list[tuple[int, str]]:
    """Start hosts and send SIGTERM to one of them once the first has printed a line that begins with `behind`."""
    processes = start_hosts(commands)
    seen = []
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        seen.append(line)
        if line.startswith(behind):
            processes[host].send_signal(signal.SIGTERM)
    (status, _), *rest = finish(processes)
    return [(status, "".join(seen)), *rest]


@pytest.mark.soak
def test_a_run_stopped_on_one_of_two_hosts_ends_as_on_one_and_finds_its_programs(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    alone = run(train_command(tmp_path / "alone", *STEPS, data=tiny_dataset), devices=2)
    assert alone.returncode == 0, alone.stderr
    command = train_command(tmp_path / "two", *STEPS, data=tiny_dataset)
    stopped = stop_one([command] * 2, behind="step 3/", host=1)
    assert [status for status, _ in stopped] == [75, 75], stopped
    step = re.search(r"stopped at step (\d+) of 300, checkpoint saved", stopped[0][1])
    assert step, stopped[0][1]
    assert [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()] == [step.group(1)]
    ended = finish(start_hosts([command] * 2))
    assert [status for status, _ in ended] == [0, 0], ended
    assert f"resuming at step {step.group(1)} of 300" in ended[0][1]
    assert "step" not in ended[1][1]  # only the first host speaks
    for mine, theirs in zip(figures(tmp_path / "two"), figures(tmp_path / "alone"), strict=True):
        assert mine == pytest.approx(theirs, rel=APART, abs=APART)
    found = re.search(r"in 2 starts.*\((\d+) of (\d+) programs from the compilation cache\)", ended[0][1])
    assert found, ended[0][1]
    if "CPU AOT" not in ended[0][1]:  # some CPUs refuse what they compiled themselves (jax issue 38445)
        assert int(found.group(1)) >= 3


def test_a_host_with_another_config_is_named_on_every_host(tiny_dataset: Path, tmp_path: Path) -> None:
    commands = [train_command(tmp_path, *STEPS, f"seed={seed}", data=tiny_dataset) for seed in (1, 2)]
    for status, output in finish(start_hosts(commands)):
        assert status == 2
        assert re.search(r"error: host 1 \(.*\) differs from host 0 \(.*\) in config\.seed \(2 vs\. 1\)", output)
        assert "Traceback" not in output
    assert not any(tmp_path.iterdir())


@pytest.mark.soak
def test_a_host_with_another_vocabulary_is_named_on_every_host(tiny_dataset: Path, tmp_path: Path) -> None:
    from bert_jax.config import DataConfig
    from bert_jax.data.builder import build_dataset

    build_dataset(
        DataConfig(input="embedded", heldout_fraction=0.05),
        out=tmp_path / "other",
        max_seq_lengths=(32,),
        vocab_size=480,
        report=lambda text: None,
    )
    data = (tiny_dataset, tmp_path / "other")
    commands = [train_command(tmp_path / "run", *STEPS, data=directory) for directory in data]
    for status, output in finish(start_hosts(commands)):
        assert status == 2
        assert re.search(
            r"error: host 1 \(.*\) differs from host 0 \(.*\) in (vocabulary|data of length 32) \(", output
        )
        assert "Traceback" not in output


def test_an_error_of_the_first_host_alone_is_told_by_all(tmp_path: Path) -> None:
    command = train_command(tmp_path, *STEPS, "data.input=/nowhere/*.txt")
    (first, said), (second, repeated) = finish(start_hosts([command] * 2))
    assert (first, second) == (2, 2)
    message = said.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert f"host 0 ({os.uname().nodename}) stopped: {message.removeprefix('error: ')}" in repeated


@pytest.mark.parametrize("host", [0, 1])
def test_a_host_that_never_starts_is_named_by_the_one_that_did(tiny_dataset: Path, tmp_path: Path, host: int) -> None:
    command = [*train_command(tmp_path, *STEPS, data=tiny_dataset), "--host_timeout=1"]
    commands = [command] * 2 if host == 0 else [command]
    commands[0] = [sys.executable, "-c", "pass"] if host == 0 else command
    status, output = finish(start_hosts(commands, count=2))[-1]
    assert status == 75  # a launcher may try again
    assert f"error: host {host} of 2 did not start within 1 seconds" in output
    assert "Traceback" not in output


def on_another_machine(command: list[str], *, boot_id: Path) -> list[str]:
    """Return the command as it would run on a machine that was booted another time, which is how XLA tells machines."""
    boot_id.write_text("11111111-2222-3333-4444-555555555555\n")
    mount = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command]


@pytest.mark.soak
def test_hosts_may_be_machines_of_their_own(tiny_dataset: Path, tmp_path: Path) -> None:
    command = train_command(tmp_path / "run", *SMALL, "train.num_steps=10", data=tiny_dataset)
    there = on_another_machine(command, boot_id=tmp_path / "boot_id")
    if subprocess.run([*there[:7], "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare may not make a mount namespace here")
    for status, output in finish(start_hosts([command, there])):
        assert status == 0, output
    assert (tmp_path / "run" / "checkpoints" / "10").is_dir()


STAGES = (  # hosts, devices of each, mesh, the step behind which it is stopped
    (1, 2, ("mesh.fsdp=2",), 40),
    (2, 1, ("mesh.data=2",), 100),
    (4, 1, ("mesh.fsdp=2", "mesh.tensor=2"), 160),
    (1, 1, (), 1000),
)


@pytest.mark.soak
def test_a_run_that_goes_from_one_to_two_to_four_hosts_and_back_ends_as_the_undisturbed_one(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    alone = run(train_command(tmp_path / "alone", *STEPS, data=tiny_dataset), timeout=900)
    assert alone.returncode == 0, alone.stderr
    for hosts, devices, mesh, last in STAGES:
        command = train_command(tmp_path / "moving", *STEPS, *mesh, data=tiny_dataset)
        processes = start_hosts([command] * hosts, devices=devices)
        seen = []
        assert processes[0].stdout is not None
        for line in processes[0].stdout:
            seen.append(line)
            if line.startswith(f"step {last}/"):
                processes[-1].send_signal(signal.SIGTERM)
        statuses = [status for status, _ in finish(processes, timeout=900)]
        assert statuses == [75 if last < 300 else 0] * hosts, "".join(seen)
        print(hosts, "hosts", *mesh, [line for line in seen if line.startswith(("resuming", "stopped at", "finished"))])
    furthest = 0.0
    for mine, theirs in zip(figures(tmp_path / "moving"), figures(tmp_path / "alone"), strict=True):
        assert mine == pytest.approx(theirs, rel=APART, abs=APART)
        furthest = max(furthest, abs(mine.get("train/loss", 0.0) - theirs.get("train/loss", 0.0)))
    print("largest difference of a step's loss:", furthest)
