"""What the hosts of a run compare before they begin: the folder they share, the weights they begin from."""

import functools
from pathlib import Path

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.pretrain.run import SAME_RUN
from bert_jax.runs import start_up
from bert_jax.runs.start_up import check_command, check_shared, open_runtime, weights_digest
from tests.thread_hosts import hosts_in_threads, together
from tests.tiny_model import tiny_config


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[Hosts]:
    """Return two hosts that are threads."""
    monkeypatch.setattr(start_up, "_SHOWN_WITHIN", 0.5)
    return hosts_in_threads(monkeypatch, "alpha", "beta", seconds=3)


def test_hosts_with_folders_of_their_own_are_told_so(tmp_path: Path, pair: list[Hosts]) -> None:
    folders = [tmp_path / host.names[host.index] for host in pair]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")  # left by an earlier run, it proves nothing
    ended = together(*(functools.partial(check_shared, f, hosts=h) for f, h in zip(folders, pair, strict=True)))
    assert isinstance(ended[1], UserError)
    assert "host 1 (beta) does not see the file" in str(ended[1])
    assert "--workdir must be a folder shared by all hosts" in str(ended[1])
    assert [path.name for folder in folders for path in folder.iterdir()] == ["config.json"] * 2


def test_a_shared_folder_is_left_as_it_was(tmp_path: Path, pair: list[Hosts]) -> None:
    assert together(*(functools.partial(check_shared, tmp_path, hosts=host) for host in pair)) == [None, None]
    assert not any(tmp_path.iterdir())


def test_weights_to_begin_from_that_differ_are_named(pair: list[Hosts], monkeypatch: pytest.MonkeyPatch) -> None:
    trees = [{"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)} for _ in pair]
    assert weights_digest(trees[0]) == weights_digest(trees[1]) != weights_digest(None) == ""
    config = tiny_config()
    monkeypatch.setattr(start_up, "check_all_joined", lambda hosts: None)  # the hosts are threads of one process
    calls = [functools.partial(check_command, config, params=p, hosts=h) for p, h in zip(trees, pair, strict=True)]
    assert together(*calls) == [None, None]
    trees[1]["kernel"][2, 3] = 2
    again = [functools.partial(check_command, config, params=p, hosts=h) for p, h in zip(trees, pair, strict=True)]
    for error in together(*again):
        assert "host 1 (beta) differs from host 0 (alpha) in the weights of --init" in str(error)


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_a_command_that_is_refused_leaves_no_folder_behind(tmp_path: Path, is_used: bool, exists: bool) -> None:
    workdir = tmp_path / "run"
    if exists:
        workdir.mkdir()
    runtime = open_runtime(tiny_config(), workdir=workdir, same_run=SAME_RUN, hosts=Hosts())
    if is_used:
        (workdir / "metrics.jsonl").touch()
    runtime.close()
    assert workdir.exists() == (is_used or exists)
