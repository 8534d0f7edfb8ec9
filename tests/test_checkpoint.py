"""Checkpoints: bit-equal, on any mesh, kept as told, and never a damaged one for a good one."""

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.config import CheckpointConfig, MeshConfig
from bert_jax.errors import UserError
from bert_jax.parallel import mesh as meshes
from bert_jax.runs.checkpoint import Checkpointer, Restored, checksums, quiet_abandoned_requests
from bert_jax.training.state import TrainState

METADATA = {"config": {"seed": 3}, "window": {"loss": [1.5, 2.0]}, "fingerprints": {"vocabulary": "abc"}}


def make_state(step: int) -> TrainState:
    """Return a state of 40 KiB with every bit pattern that floats have trouble with."""
    rng = np.random.default_rng(step)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    params = {"layers": {"kernel": rng.normal(size=(2, 64, 64)).astype(np.float32)}, "bias": special}
    return jax.tree.map(
        jnp.asarray, TrainState(step=jnp.int32(step), params=params, opt_state={"mu": params, "count": np.int32(step)})
    )


def abstract(state: Any) -> Any:
    """Return what to restore into: one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def assert_bit_equal(first: Any, second: Any) -> None:
    """Compare bytes: NaN equals itself, 0 does not equal -0."""
    pairs = zip(jax.tree.leaves(jax.device_get(first)), jax.tree.leaves(jax.device_get(second)), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@contextlib.contextmanager
def opened(
    directory: Path, *, read_only: bool = False, said: list[str] | None = None, **fields: Any
) -> Iterator[Checkpointer]:
    """Open a checkpointer and close it."""
    config = None if read_only else CheckpointConfig(**fields)
    checkpointer = Checkpointer(directory, config=config, report=(said if said is not None else []).append)
    try:
        yield checkpointer
    finally:
        checkpointer.close()


def save(directory: Path, *steps: int, **fields: Any) -> None:
    """Save the states of `steps`."""
    with opened(directory, **fields) as checkpointer:
        for step in steps:
            checkpointer.save(step, state=make_state(step), metadata={**METADATA, "number": step})


def restore(directory: Path, *, said: list[str] | None = None, read_only: bool = False) -> Restored | None:
    """Restore the newest good state."""
    with opened(directory, said=said, read_only=read_only) as checkpointer:
        return checkpointer.restore(abstract(make_state(0)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the checkpoints of steps 10 and 20, to be copied."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    save(directory, 10, 20)
    return directory


@pytest.fixture
def copy(two: Path, tmp_path: Path) -> Path:
    """Return a copy of the two checkpoints, to be damaged."""
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


def test_a_state_comes_back_bit_for_bit(two: Path) -> None:
    restored = restore(two)
    assert restored is not None
    assert restored.step == 20
    assert_bit_equal(restored.state, make_state(20))
    assert restored.metadata == {**METADATA, "number": 20}


def test_a_given_step_comes_back_and_one_that_is_not_there_is_named(two: Path) -> None:
    with opened(two, read_only=True) as checkpointer:
        assert checkpointer.steps() == [10, 20]
        restored = checkpointer.restore(abstract(make_state(0)), step=10)
        assert restored is not None
        assert_bit_equal(restored.state, make_state(10))
        with pytest.raises(UserError, match=r"no checkpoint of step 15 .*\[10, 20\]"):
            checkpointer.restore(abstract(make_state(0)), step=15)


def test_the_target_may_be_made_from_the_metadata(two: Path) -> None:
    def target(metadata: dict[str, Any]) -> Any:
        assert metadata["fingerprints"] == METADATA["fingerprints"]
        return abstract(make_state(0))

    with opened(two, read_only=True) as checkpointer:
        restored = checkpointer.restore(target)
    assert restored is not None
    assert_bit_equal(restored.state, make_state(20))


def test_a_mistake_of_the_user_is_not_taken_for_damage(copy: Path) -> None:
    def target(metadata: dict[str, Any]) -> Any:
        del metadata
        raise UserError("another vocabulary")

    with opened(copy) as checkpointer, pytest.raises(UserError, match="another vocabulary"):
        checkpointer.restore(target)
    assert sorted(path.name for path in copy.iterdir() if path.is_dir()) == ["10", "20"]


def test_a_state_comes_back_on_another_mesh(two: Path) -> None:
    state = make_state(20)
    for shape in ((8, 1, 1), (1, 8, 1), (1, 2, 4)):
        mesh = meshes.make_mesh(MeshConfig(*shape))

        def place(leaf: Any, mesh: Any = mesh) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec(None, "fsdp", "tensor") if leaf.ndim == 3 else PartitionSpec()
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

        target = jax.tree.map(place, state)
        with opened(two, read_only=True) as checkpointer:
            restored = checkpointer.restore(target)
        assert restored is not None
        assert_bit_equal(restored.state, state)
        for leaf, wanted in zip(jax.tree.leaves(restored.state), jax.tree.leaves(target), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_a_sharded_state_has_the_checksums_of_the_whole_one() -> None:
    state = make_state(1)
    mesh = meshes.make_mesh(MeshConfig(1, 4, 2))
    spread = jax.tree.map(
        lambda leaf: jax.device_put(
            leaf, NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor") if leaf.ndim == 3 else PartitionSpec())
        ),
        state,
    )
    assert checksums(spread) == checksums(state)


def test_any_flipped_bit_changes_a_checksum() -> None:
    state = make_state(1)
    before = checksums(state)
    kernel = np.asarray(state.params["layers"]["kernel"])
    for bit in range(32):
        changed = kernel.copy()
        changed.view(np.uint32)[1, 5, 7] ^= np.uint32(1 << bit)
        after = checksums(
            dataclasses.replace(state, params={**state.params, "layers": {"kernel": jnp.asarray(changed)}})
        )
        assert [name for name in before if before[name] != after[name]] == ["params/layers/kernel"]


def test_only_the_latest_are_kept_and_every_so_many_for_ever(tmp_path: Path) -> None:
    save(tmp_path / "a", 1, 2, 3, 4, 5, keep_latest=2)
    save(tmp_path / "b", 10, 20, 25, 30, 40, 45, keep_latest=2, keep_every=20)
    with opened(tmp_path / "a", read_only=True) as first, opened(tmp_path / "b", read_only=True) as second:
        assert first.steps() == [4, 5]
        assert second.steps() == [20, 40, 45]


def test_a_step_is_saved_once(copy: Path) -> None:
    with opened(copy) as checkpointer:
        checkpointer.save(20, state=make_state(99), metadata={})
    restored = restore(copy)
    assert restored is not None
    assert_bit_equal(restored.state, make_state(20))


def test_the_last_good_one_is_known(copy: Path) -> None:
    with opened(copy) as checkpointer:
        checkpointer.restore(abstract(make_state(0)))
        assert checkpointer.last_good == 20
        checkpointer.save(30, state=make_state(30), metadata={})
        checkpointer.wait()
        assert checkpointer.last_good == 30


def test_an_empty_directory_restores_nothing(tmp_path: Path) -> None:
    assert restore(tmp_path / "none") is None


def files(directory: Path) -> list[Path]:
    """Return the files of a checkpoint that hold something, largest first."""
    found = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(found) > 3
    return sorted(found, key=lambda path: (-path.stat().st_size, str(path)))


def test_whatever_is_damaged_the_one_before_is_used_and_the_damaged_one_kept(two: Path, tmp_path: Path) -> None:
    """Damage every file of the newest checkpoint in five ways: the state is right, or that of the one before."""
    passed_over = 0
    names = [path.relative_to(two) for path in files(two / "20")]
    for index, name in enumerate(names):
        for how in ("deleted", "truncated", "flipped at 0.25", "flipped at 0.5", "flipped at 0.75"):
            directory = Path(shutil.copytree(two, tmp_path / f"{index} {how}"))
            damage(directory / name, how)
            said: list[str] = []
            restored = restore(directory, said=said)
            assert restored is not None, (name, how)
            # Some files are not needed to read the arrays; if the newest is used it must be right, to the bit.
            assert restored.step in (10, 20), (name, how)
            assert_bit_equal(restored.state, make_state(restored.step))
            assert restored.metadata == {**METADATA, "number": restored.step}, (name, how)
            if restored.step == 10:
                passed_over += 1
                assert any("step 20 is damaged" in line and "\n" not in line for line in said), (name, how)
                aside = [path for path in directory.iterdir() if path.name.startswith("20.damaged")]
                assert len(aside) == 1, (name, how)
                assert str(aside[0]) in " ".join(said)
                assert restore(directory).step == 10  # type: ignore[union-attr]
    assert passed_over >= len(names)


def damage(path: Path, how: str) -> None:
    """Delete, halve, or flip a bit of a file."""
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[int(len(content) * float(how.split()[-1]))] ^= 1
        path.write_bytes(content)


def test_a_damaged_checkpoint_costs_two_lines_and_no_traceback(two: Path, tmp_path: Path) -> None:
    """Whatever the reader's threads have to say of it, and whenever: a fresh process prints what was reported."""
    damaged = 0
    for index in range(3):
        directory = Path(shutil.copytree(two, tmp_path / str(index)))
        damage(files(directory / "20")[index], "flipped at 0.5")
        code = (
            "import gc, sys; sys.path.insert(0, 'tests'); import pathlib, test_checkpoint as t; "
            f"restored = t.Checkpointer(pathlib.Path({str(directory)!r}), config=t.CheckpointConfig())"
            ".restore(t.abstract(t.make_state(0))); gc.collect()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
        lines = done.stdout.splitlines()
        assert done.stderr == "", done.stderr
        assert len(lines) in (0, 2), lines
        damaged += bool(lines)
    assert damaged


def test_an_event_loop_ends_without_a_word_of_requests_that_orbax_abandoned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Python reports an error that a task raises when it is canceled, with its traceback, by asyncio's logger."""
    request = "async def request(event):\n    try: await event.wait()\n    finally: raise ValueError('a damaged file')"

    async def abandon(filename: str) -> None:
        scope: dict[str, Any] = {}
        exec(compile(request, filename, "exec"), scope)
        task = asyncio.get_running_loop().create_task(scope["request"](asyncio.Event()))
        await asyncio.sleep(0)
        assert not task.done()

    quiet_abandoned_requests()
    asyncio.run(abandon("/lib/orbax/checkpoint/_src/serialization.py"))
    assert not caplog.records
    asyncio.run(abandon("/home/user/own.py"))
    assert "a damaged file" in caplog.text


def test_training_goes_on_behind_a_damaged_checkpoint(copy: Path) -> None:
    damage(files(copy / "20")[0], "truncated")
    with opened(copy) as checkpointer:
        restored = checkpointer.restore(abstract(make_state(0)))
        assert restored is not None
        assert restored.step == checkpointer.last_good == 10
        checkpointer.save(20, state=make_state(20), metadata=METADATA)
    again = restore(copy)
    assert again is not None
    assert again.step == 20
    assert_bit_equal(again.state, make_state(20))


def test_reading_only_passes_over_a_damaged_one_and_leaves_it(copy: Path) -> None:
    damage(files(copy / "20")[0], "truncated")
    before = sorted(str(path) for path in copy.rglob("*"))
    restored = restore(copy, read_only=True)
    assert restored is not None
    assert restored.step == 10
    assert sorted(str(path) for path in copy.rglob("*")) == before


def test_nothing_but_damaged_checkpoints_is_one_clear_line(copy: Path) -> None:
    for step in ("10", "20"):
        damage(files(copy / step)[0], "truncated")
    with pytest.raises(UserError, match=r"none of the checkpoints .*\[10, 20\]") as caught:
        restore(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_where_all_are_damaged_they_stay_and_no_run_silently_starts_anew(copy: Path) -> None:
    for step in ("10", "20"):
        damage(files(copy / step)[0], "truncated")
    for _ in range(2):
        with pytest.raises(UserError, match="none of the checkpoints"):
            restore(copy)
        assert {path.name for path in copy.iterdir()} >= {"10", "20"}


@pytest.mark.parametrize(
    "error", [MemoryError("8 GiB"), PermissionError(13, "denied"), RuntimeError("RESOURCE_EXHAUSTED: 9 GiB of HBM")]
)
def test_what_is_no_damage_sets_nothing_aside(copy: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with opened(copy) as checkpointer:
        monkeypatch.setattr(checkpointer, "metadata", fail)
        with pytest.raises(UserError, match="but it may be intact"):
            checkpointer.restore(abstract(make_state(0)))
    again = restore(copy)
    assert again is not None
    assert again.step == 20


def test_a_checkpoint_left_half_written_by_a_kill_is_not_one(copy: Path) -> None:
    half = next(copy.glob("20"))
    half.rename(copy / "30.orbax-checkpoint-tmp-1700000000")
    restored = restore(copy)
    assert restored is not None
    assert restored.step == 10


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="checkpoints cannot be written to") as caught:
        Checkpointer(tmp_path / "file" / "checkpoints", config=CheckpointConfig())
    assert "\n" not in str(caught.value)


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond `limit` bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_line_and_keeps_the_last_good_one(copy: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)  # 1 MiB that does not compress
    state = TrainState(step=jnp.int32(30), params={"kernel": jnp.asarray(noise)}, opt_state={})
    checkpointer = Checkpointer(copy, config=CheckpointConfig(), report=[].append)

    def save_to_the_end() -> None:
        checkpointer.save(30, state=state, metadata=METADATA)
        checkpointer.wait()

    with full_disk(64 * 1024), pytest.raises(UserError, match=r"could not be written .* step 20") as caught:
        save_to_the_end()
    assert "\n" not in str(caught.value)
    with contextlib.suppress(UserError):
        checkpointer.close()
    restored = restore(copy)
    assert restored is not None
    assert restored.step == 20
    assert_bit_equal(restored.state, make_state(20))


def test_metadata_is_read_without_the_arrays(copy: Path) -> None:
    for path in files(copy / "20" / "state"):
        path.unlink()
    with opened(copy, read_only=True) as checkpointer:
        metadata = checkpointer.metadata(20)
    assert json.loads(json.dumps(metadata))["number"] == 20


def test_what_a_killed_process_had_half_written_is_removed(copy: Path) -> None:
    (copy / "30.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    restored = restore(copy, read_only=True)
    assert (copy / "30.orbax-checkpoint-tmp").exists()  # a reader removes nothing
    restored = restore(copy)
    assert restored is not None
    assert restored.step == 20
    assert sorted(path.name for path in copy.iterdir()) == ["10", "20"]
