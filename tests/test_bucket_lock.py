"""The lock of a workdir in a bucket: one holder, taken over from the dead only, and errors of one line."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from gcs_server import Store, serving

pytest.importorskip("google.cloud.storage", reason="needs gcsfs: pip install 'bert_jax[gcs]'")

from bert_jax.buckets import BucketFolder
from bert_jax.errors import UserError
from bert_jax.runs import bucket_lock
from bert_jax.runs.bucket_lock import BucketLock

URL = "gs://bucket/run"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving("bucket") as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(bucket_lock, "BEAT_SECONDS", 0.05)
        monkeypatch.setattr(bucket_lock, "STALE_SECONDS", 1.0)
        monkeypatch.setattr(bucket_lock, "_POLL_SECONDS", 0.02)
        yield started


def lock(url: str = URL, lines: list[str] | None = None) -> BucketLock:
    return BucketLock(url, report=[].append if lines is None else lines.append)


def put(store: Store, **owner: object) -> None:
    store.put(
        "bucket", "run/.lock", json.dumps({"host": "h", "pid": 1, "machine": "m", "since": "then", **owner}).encode()
    )


def test_a_lock_is_there_while_it_is_held(store: Store):
    held = lock()
    assert store.names("bucket") == ["run/.lock"]
    first = store.get("bucket", "run/.lock").generation
    time.sleep(0.3)
    assert store.get("bucket", "run/.lock").generation > first  # a sign of life
    held.check()
    held.release()
    assert store.names("bucket") == []


def test_the_lock_of_a_process_that_lives_here_is_refused_at_once(store: Store):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        put(store, pid=other.pid, machine=bucket_lock._machine())
        with pytest.raises(
            UserError,
            match=rf"^--workdir=gs://bucket/run: another process trains in it \(h, process {other.pid}, since",
        ):
            lock()
        other.communicate(b"\n")
    lock().release()  # it has ended


def test_the_lock_of_another_machine_is_watched(store: Store):
    put(store)
    lines: list[str] = []
    held = lock(lines=lines)  # nobody renewed it
    assert lines[0].startswith(
        "--workdir=gs://bucket/run is locked (h, process 1, since then): waiting up to 1 s for a"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_lock, "_THIS", {"host": "other", "pid": 2, "machine": "n"})
        patch.setattr(bucket_lock, "_is_here", lambda owner: False)  # as seen from there
        with pytest.raises(UserError, match="another process trains in it"):
            lock()
    held.check()
    held.release()


def test_who_lost_the_lock_writes_nothing_more(store: Store):
    held = lock()
    put(store)  # of a process that took it over
    time.sleep(0.3)
    with pytest.raises(UserError, match=r"lost its lock \(another process has taken it over\), so nothing more is"):
        held.check()
    held.release()
    assert json.loads(store.content("bucket", "run/.lock"))["host"] == "h"  # theirs stays


def test_of_two_that_take_over_one_succeeds(store: Store, monkeypatch: pytest.MonkeyPatch):
    put(store)
    first = lock()
    monkeypatch.setattr(bucket_lock, "_is_dead", lambda owner: False)
    with pytest.raises(UserError, match="another process trains in it"):
        lock()
    first.release()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("gs://nowhere/run", "there is no such bucket or object: see what is there with gcloud storage ls"),
        ("gs://forbidden/run", "no permission (.*): give this account the role Storage Object User of the bucket"),
        ("gs://private/run", "no credentials for this bucket: type gcloud auth application-default login"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_one_line(store: Store, url: str, reason: str):
    with pytest.raises(UserError, match=f"^--workdir={url}: {reason}"):
        lock(url)
    pytest.importorskip("gcsfs")
    with pytest.raises(UserError, match=f"^--out={url}: {reason}"):
        BucketFolder(url, name="--out").create("x", b"")
