"""Fine-tuning on several hosts: the same batches, one writer, one status; under kills it ends as if undisturbed."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.finetune_data import write_conll, write_sentiment, write_source
from tests.rounding import sum_bound
from tests.runs import ROOT, environment, figures
from tests.test_local_multihost import launch
from tests.test_multihost import finish, start_hosts

FIELDS = ("data.max_seq_length=48", "train.batch_size=16", "optimizer.learning_rate=3e-3", "log.every=1")
# A gradient is a sum over 16 rows of 48 tokens, in another order on another number of hosts; 64 examples are 4 steps.
APART = 4 * sum_bound(16 * 48)


def command(config: str, folder: Path, workdir: Path, *fields: str, flags: tuple[str, ...] = ()) -> list[str]:
    """Return the command of a tiny run; later fields win."""
    return [
        *(sys.executable, "-m", "bert_jax.finetune", f"--config=configs/{config}"),
        *(f"--init={folder / 'source'}", f"--data_dir={folder / 'data'}", f"--workdir={workdir}"),
        *(f"--config.{field}" for field in (*FIELDS, *fields)),
        *flags,
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and data."""
    path = tmp_path_factory.mktemp("finetune_hosts")
    write_source(path / "source", hidden_dropout_prob=0.1)
    write_sentiment(path / "data", train=64)
    write_conll(path / "data")
    return path


def run_alone(arguments: list[str], *, devices: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command on one host."""
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=600, check=False
    )


def results(workdir: Path) -> dict[str, Any]:
    """Return results.json without the times, which no two runs share."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            timed = ("train_seconds", "sequences_per_second")
            return {name: without_times(item) for name, item in value.items() if name not in timed}
        return [without_times(item) for item in value] if isinstance(value, list) else value

    return without_times(json.loads((workdir / "results.json").read_text()))


@pytest.mark.slow
def test_any_number_of_hosts_holds_the_same_rows(folder: Path, tmp_path: Path) -> None:
    config = {
        "task": "own",
        "data": {"directory": str(folder / "data"), "max_seq_length": 48},
        "train": {"batch_size": 16},
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    script = [sys.executable, str(ROOT / "tests" / "show_finetune_batches.py"), str(file), str(folder / "source")]
    held: list[dict[str, str]] = []
    for hosts in (1, 2):
        ended = finish(start_hosts([script] * hosts, devices=4 // hosts))
        parts = []
        for status, output in ended:
            assert status == 0, output
            found = re.search(r"held (\{.*\}) of (\d+)", output)
            assert found is not None
            assert int(found.group(2)) == hosts
            parts.append(json.loads(found.group(1)))
        assert hosts == 1 or not parts[0].keys() & parts[1].keys()  # each row on one host
        held.append({name: digest for part in parts for name, digest in part.items()})
    assert held[0] == held[1]
    assert len(held[0]) > 12


@pytest.mark.soak
def test_two_hosts_train_a_sweep_as_one_does_and_one_of_them_writes(folder: Path, tmp_path: Path) -> None:
    fields = ("checkpoint.every=1", "train.evals_per_epoch=4")  # best parameters and states are saved at one step
    fields += ("train.num_epochs=1", "sweep.batch_size=(16,)", "sweep.learning_rate=(3e-3,)", "sweep.num_epochs=(1.0,)")
    flags = ("--sweep", "--seeds=2")
    one = run_alone(command("finetune_own.py", folder, tmp_path / "one", *fields, flags=flags), devices=2)
    assert one.returncode == 0, one.stderr
    both = [command("finetune_own.py", folder, tmp_path / "two", *fields, flags=flags)] * 2
    ended = finish(start_hosts(both))
    assert [status for status, _ in ended] == [0, 0], ended
    assert "run 2 of 2" in ended[0][1]
    assert "run 2 of 2" not in ended[1][1]
    runs = sorted(path.name for path in (tmp_path / "one" / "runs").iterdir())
    assert runs == sorted(path.name for path in (tmp_path / "two" / "runs").iterdir())
    for name in runs:
        alone, together = (figures(tmp_path / workdir / "runs" / name) for workdir in ("one", "two"))
        assert [line["step"] for line in alone] == [line["step"] for line in together]
        for mine, other in zip(alone, together, strict=True):
            assert mine == pytest.approx(other, rel=APART, abs=APART)
    again = finish(start_hosts(both))
    assert [status for status, _ in again] == [0, 0]
    assert not any("run 1 of 2:" in output for _, output in again)  # finished runs are not run again


@pytest.mark.soak
def test_two_hosts_stop_at_one_step_and_one_host_resumes_there(folder: Path, tmp_path: Path) -> None:
    fields = ("train.num_epochs=20", "checkpoint.every=20")
    arguments = command("finetune_own.py", folder, tmp_path / "work", *fields)
    hosts = start_hosts([arguments] * 2)
    assert hosts[0].stdout is not None
    for line in hosts[0].stdout:
        if line.startswith("step"):
            break
    hosts[1].send_signal(signal.SIGTERM)
    ended = finish(hosts)
    assert [status for status, _ in ended] == [75, 75], ended
    stopped = re.search(r"stopped at step (\d+) of 80, state saved", ended[0][1])
    assert stopped is not None, ended[0][1]
    alone = run_alone(arguments, devices=2)
    assert alone.returncode == 0, alone.stderr
    assert f"resuming at step {stopped.group(1)} of 80" in alone.stdout
    steps = [
        line["step"] for line in figures(tmp_path / "work" / "runs" / "b16-lr0.003-e20-s0") if "train/loss" in line
    ]
    assert steps == list(range(1, 81))  # every step once


def test_a_second_command_in_one_workdir_ends_with_one_line(folder: Path, tmp_path: Path) -> None:
    arguments = command("finetune_own.py", folder, tmp_path / "work", "train.num_epochs=500")
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("step"):
                break
        second = run_alone(arguments)
        first.send_signal(signal.SIGTERM)
        output, _ = first.communicate(timeout=120)
    assert second.returncode == 2
    assert "another process trains in it: wait until it ends, or choose another --workdir" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert first.returncode == 75
    assert "state saved" in output


KILLS = 20
KILLED = {
    "sweep": (
        "finetune_own.py",
        ("train.num_epochs=300", "checkpoint.every=3", "train.evals_per_epoch=2"),
        ("--seeds=2",),
    ),
    "feature_based": (
        "finetune_ner.py:concat_last_four",
        ("train.num_epochs=400", "checkpoint.every=3", "ner.bilstm_hidden_size=8", "ner.document_context=False"),
        ("--seeds=2",),
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", KILLED)
def test_twenty_kills_at_random_moments_change_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    config, fields, flags = KILLED[name]
    model = write_source(tmp_path / "model", hidden_dropout_prob=0.1, num_hidden_layers=4)  # features of four layers
    flags = (*flags, f"--init={model}")
    whole = run_alone(command(config, folder, tmp_path / "whole", *fields, flags=flags))
    assert whole.returncode == 0, whole.stderr
    started = time.monotonic()
    arguments = command(config, folder, tmp_path / "killed", *fields, flags=flags)
    options = ["--processes=1", f"--kills={KILLS}", "--kill_every=6", "--max_restarts=200", "--seed=3"]
    done = launch(options, arguments, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:]
    print(f"{name}: {done.stdout.count('resuming at step')} starts resumed, {time.monotonic() - started:.0f} s")
    assert f"{KILLS} kills" in done.stdout
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "runs").glob("*/metrics.jsonl")):
        assert figures(tmp_path / "killed" / "runs" / path.parent.name) == figures(path.parent)
