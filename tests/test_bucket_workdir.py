"""The copy of a workdir in a bucket: what the bucket has at a start, and what changed at a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
from etils import epath
from memory_bucket import MemoryBuckets, memory_bucket

from bert_jax.errors import UserError
from bert_jax.runs.bucket_workdir import BucketWorkdir, require_dataset
from bert_jax.runs.checkpoint import damage

__all__ = ["memory_bucket"]

URL = "gs://bucket/run"


class Lock:
    """A lock that is held until it is lost."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise UserError("lost its lock")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_JAX_CACHE", str(tmp_path))


def open_copy(lock: Any = None) -> BucketWorkdir:
    return BucketWorkdir(URL, copy="host 0", lock=lock)


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_start_replaces_the_copy_by_what_the_bucket_has(memory_bucket: MemoryBuckets):
    old = open_copy().path
    (old / "metrics.jsonl").write_text("of a killed start, later than its last checkpoint")
    (old / "vocab").mkdir()
    (old / "vocab" / "added.txt").write_text("not in the bucket")
    remote = {"metrics.jsonl": "lines", "config.json": "{}", "tb/events": "e", "checkpoints/4/commit_success.txt": ""}
    unfinished = {"checkpoints/8/metadata": "m", ".lock": "l"}
    for name, content in {**remote, **unfinished}.items():
        memory_bucket.pipe(f"/bucket/run/{name}", content.encode())
    copy = open_copy().path
    assert copy == old
    assert files(copy) == {"metrics.jsonl": "lines", "config.json": "{}", "tb/events": "e"}
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["4"]


def test_what_changed_is_uploaded_while_the_lock_is_held(memory_bucket: MemoryBuckets, monkeypatch: pytest.MonkeyPatch):
    lock, sent = Lock(), []
    copy = open_copy(lock)
    pipe = MemoryBuckets.pipe_file
    monkeypatch.setattr(
        MemoryBuckets, "pipe_file", lambda self, path, value, **how: (sent.append(path), pipe(self, path, value, **how))
    )
    for name in ("metrics.jsonl", "config.json", "compilation_cache/program", ".page.1.partial"):
        (copy.path / name).parent.mkdir(exist_ok=True)
        (copy.path / name).write_text(name)
    copy.finish()
    assert not sent  # a run that saved nothing leaves nothing
    copy.publish()
    assert sorted(sent) == ["/bucket/run/config.json", "/bucket/run/metrics.jsonl"]
    sent.clear()
    (copy.path / "metrics.jsonl").write_text("more lines")
    copy.finish()
    assert sent == ["/bucket/run/metrics.jsonl"]
    assert memory_bucket.cat("/bucket/run/metrics.jsonl") == b"more lines"
    lock.lost = True
    (copy.path / "metrics.jsonl").write_text("of one that another replaced")
    with pytest.raises(UserError, match="lost its lock"):
        copy.publish()
    assert memory_bucket.cat("/bucket/run/metrics.jsonl") == b"more lines"


def test_hosts_other_than_the_first_upload_nothing(memory_bucket: MemoryBuckets):
    copy = open_copy()
    (copy.path / "config.json").write_text("{}")
    copy.publish()
    copy.finish()
    assert not memory_bucket.store


def test_a_store_that_does_not_answer_is_not_a_damaged_checkpoint():
    remote = epath.Path("gs://bucket/run/checkpoints")
    with pytest.raises(UserError, match=r"checkpoint of step 4 in gs://bucket/run/checkpoints .* may be intact"):
        damage(TimeoutError("no answer"), step=4, directory=remote)
    assert damage(FileNotFoundError("state/d/1"), step=4, directory=remote) == "state/d/1"
    assert damage(ValueError("the checksum of x differs"), step=4, directory=remote) == "the checksum of x differs"
    assert damage(TimeoutError("no answer"), step=4, directory=Path("run/checkpoints")) == "no answer"


def test_a_data_set_cannot_be_built_in_a_bucket():
    with pytest.raises(
        UserError, match=r"^--workdir in a bucket: the data set cannot be built in it: type bert-jax pr"
    ):
        require_dataset("")
    require_dataset("gs://bucket/data")
