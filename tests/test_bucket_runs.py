"""Runs in a bucket, with an object store on this machine that speaks the API of Google's."""

import itertools
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gcs_server import Store, serving
from runs import ROOT, environment, train_command

pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'bert_jax[gcs]'")

DATA = "gs://bucket/data"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving("bucket") as started:
        yield started


def variables(store: Store, cache: Path) -> dict[str, str]:
    return {**environment(), **store.environment, "BERT_JAX_CACHE": str(cache)}


def run(store: Store, cache: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=variables(store, cache), capture_output=True, text=True, check=False)


def command(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"bert_jax.{name}", *flags]


def metrics(content: bytes) -> list[dict[str, float]]:
    """Return the lines of a metrics.jsonl without what depends on time."""
    lines = [json.loads(line) for line in content.splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_ends_as_one_on_a_disk(store: Store, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"  # the caches of two machines
    lengths = ("--max_seq_length=32", "--vocab_size=512", "--heldout_fraction=0.05")
    done = run(store, first, *command("prepare", "--input=embedded", f"--out={DATA}", *lengths))
    assert done.returncode == 0, done.stderr
    assert f"--config.data.directory={DATA}" in done.stdout
    assert not list(first.glob("builds/*"))

    fields = ("train.num_steps=12", "checkpoint.every=4", "eval.every=4", "log.every=1", f"data.directory={DATA}")
    done = run(store, first, *train_command(tmp_path / "disk", *fields))
    assert done.returncode == 0, done.stderr
    assert "downloading" not in done.stdout  # what was built here is in the cache

    in_bucket = [
        flag.replace(f"--workdir={tmp_path}", "--workdir=gs://bucket")
        for flag in train_command(tmp_path / "run", *fields)
    ]
    with subprocess.Popen(
        in_bucket, cwd=ROOT, env=variables(store, first), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seen = list(itertools.takewhile(lambda line: not line.startswith("step 10/"), process.stdout))
        process.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
        refused = run(store, first, *in_bucket)
        process.send_signal(signal.SIGKILL)
        output = "".join(seen) + process.stdout.read()
    assert process.returncode == -signal.SIGKILL, output
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --workdir=gs://bucket/run: another process trains in it (")
    assert refused.stderr.count("\n") == 1

    done = run(store, second, *in_bucket)
    assert done.returncode == 0, done.stderr
    assert f"downloading {DATA} to " in done.stdout
    assert re.search("resuming at step [48] of 12", done.stdout)  # 8 is being saved when it is killed
    assert "finished: 12 steps, checkpoint in gs://bucket/run/checkpoints/12" in done.stdout
    assert not store.names("bucket", "run/.lock")
    assert metrics(store.content("bucket", "run/metrics.jsonl")) == metrics(
        (tmp_path / "disk/metrics.jsonl").read_bytes()
    )

    done = run(store, second, *command("export", "--checkpoint=gs://bucket/run", "--out=gs://bucket/model"))
    assert done.returncode == 0, done.stderr
    assert "exported to gs://bucket/model: BertForPreTraining" in done.stdout
    assert "\nnext:\n    gcloud storage cp --recursive gs://bucket/model .\n" in done.stdout
    assert "model='model'" in done.stdout.splitlines()[-1]
    predict = command("predict", "--task=fill_mask", "--text=The [MASK] of a list.")
    answers = {
        run(store, tmp_path / "third", *predict, f"--model={model}").stdout
        for model in ("gs://bucket/run", "gs://bucket/model", str(tmp_path / "disk"))
    }
    assert len(answers) == 1
    assert '"predictions"' in answers.pop()


@pytest.mark.slow
def test_hosts_that_share_no_disk_train_in_a_bucket(store: Store, tiny_dataset: Path, tmp_path: Path):
    fields = ("train.num_steps=4", "checkpoint.every=2", "eval.every=4", "mesh.fsdp=2")
    command = train_command(tmp_path / "pod", *fields, data=tiny_dataset)
    command = [flag.replace(f"--workdir={tmp_path}", "--workdir=gs://bucket") for flag in command]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = []
    for index in range(2):
        place = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        env = variables(store, tmp_path / str(index)) | place
        hosts.append(
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [host.communicate()[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
    assert "finished: 4 steps, checkpoint in gs://bucket/pod/checkpoints/4" in outputs[0]
    assert [line["step"] for line in metrics(store.content("bucket", "pod/metrics.jsonl")) if "train/loss" in line]
    written = store.names("bucket", "pod/checkpoints/4/")
    assert "pod/checkpoints/4/commit_success.txt" in written
    assert any("ocdbt.process_1" in name for name in written)  # the second host's half
    assert not store.names("bucket", "pod/.lock")
