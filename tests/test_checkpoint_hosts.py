"""Checkpoints on several hosts: all see the same ones, and a host that is lost is no full disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bert_jax.config import CheckpointConfig
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.runs import checkpoint
from bert_jax.runs.checkpoint import Checkpointer
from tests.test_checkpoint import abstract, copy, make_state, opened, two
from tests.thread_hosts import hosts_in_threads, together

__all__ = ["copy", "two"]  # fixtures


class OtherHost(Hosts):
    """Stand for two hosts, the second of which cannot read its part of the checkpoint that is read first."""

    reads: int

    def __init__(self) -> None:
        super().__init__(names=("here", "there"))
        object.__setattr__(self, "reads", 0)

    def exchange(self, topic: str, value: str = "", **_: Any) -> list[str]:
        if topic.startswith("checkpoint read"):
            object.__setattr__(self, "reads", self.reads + 1)
            return [value, "chunk 3 is truncated" if self.reads == 1 else ""]
        return [value, value]


def test_damage_that_one_host_alone_sees_is_damage_for_all(copy: Path) -> None:
    said: list[str] = []
    checkpointer = Checkpointer(copy, config=CheckpointConfig(), report=said.append, hosts=OtherHost())
    restored = checkpointer.restore(abstract(make_state(0)))
    checkpointer.close()
    assert restored is not None
    assert restored.step == 10
    assert "step 20 is damaged and skipped: host 1 (there): chunk 3 is truncated" in said[0]
    assert (copy / "20.damaged-0").is_dir()


def restore_on(host: Hosts, directory: Path) -> Callable[[], int | None]:
    """Return a call that restores in `directory` as one of several hosts, and gives the step."""

    def call() -> int | None:
        checkpointer = Checkpointer(directory, config=CheckpointConfig(), report=lambda text: None, hosts=host)
        restored = checkpointer.restore(abstract(make_state(0)))
        return restored.step if restored else None

    return call


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[Hosts]:
    """Return two hosts that are threads."""
    monkeypatch.setattr(checkpoint, "_LISTING_SECONDS", 0.1)
    return hosts_in_threads(monkeypatch, "alpha", "beta", seconds=60)


def test_hosts_that_see_different_checkpoints_do_not_begin(copy: Path, tmp_path: Path, pair: list[Hosts]) -> None:
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    shutil.rmtree(other / "20")
    for error in together(restore_on(pair[0], copy), restore_on(pair[1], other)):
        assert isinstance(error, UserError)
        assert "host 1 (beta) sees checkpoints [10]" in str(error)
        assert "host 0 (alpha) sees [10, 20]: --workdir must be one folder shared by all hosts" in str(error)
    assert (copy / "20").exists()


def test_a_checkpoint_that_a_network_disk_shows_late_is_waited_for(
    copy: Path, tmp_path: Path, pair: list[Hosts], monkeypatch: pytest.MonkeyPatch
) -> None:
    late, hidden = tmp_path / "late", tmp_path / "20"
    shutil.copytree(copy, late)
    (late / "20").rename(hidden)
    listings = []

    def wait(host: Hosts, topic: str) -> str:
        if topic == "checkpoints seen" and host.index == 1:
            listings.append(topic)
            if len(listings) == 3:
                hidden.rename(late / "20")
        return numbered(host, topic)

    numbered = Hosts.numbered
    monkeypatch.setattr(Hosts, "numbered", wait)
    assert together(restore_on(pair[0], copy), restore_on(pair[1], late)) == [20, 20]
    assert len(listings) == 4  # the third was made before


def test_a_host_that_is_lost_during_a_save_is_not_a_full_disk(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = TimeoutError("Timed out waiting for the commit")
    lost.__cause__ = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Some tasks: host 1")

    def fail() -> None:
        raise lost

    with opened(copy) as alone:
        monkeypatch.setattr(alone._manager, "wait_until_finished", fail)
        with pytest.raises(UserError, match="could not be written"):
            alone.wait()
        monkeypatch.setattr(alone, "_hosts", Hosts(index=0, names=("alpha", "beta")))
        with pytest.raises(TimeoutError):
            alone.wait()
        monkeypatch.undo()
