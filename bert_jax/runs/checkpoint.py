"""Save and restore {state, metadata} with Orbax: asynchronous, atomic, verified.

Every checkpoint carries a checksum a parameter, taken on the device from the bits that were trained with, and checked
when it is read back: a damaged checkpoint is set aside by name and the last good one is used.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from bert_jax.config import CheckpointConfig
from bert_jax.errors import UserError
from bert_jax.files import load_json
from bert_jax.jax_internals import UNFINISHED_CHECKPOINT, is_abandoned_read
from bert_jax.parallel.distributed import Hosts, is_lost_host_error
from bert_jax.training.policy import parameter_names

# What TensorStore and the device runtime say when files may be whole but cannot be had now.
_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Input/output error")

_LISTINGS, _LISTING_SECONDS = 30, 2.0  # NFS clients keep a listing for up to a minute


@dataclasses.dataclass(frozen=True)
class Restored:
    """Hold what a checkpoint held."""

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpointer:
    """Keep the checkpoints of one workdir."""

    def __init__(
        self,
        directory: str | Path,
        *,
        config: CheckpointConfig | None = None,
        report: Callable[[str], None] = print,
        hosts: Hosts | None = None,
    ):
        """Open `directory`; without `config` for reading only. Every one of several `hosts` opens it.

        Raises:
          UserError: if the directory cannot be made.
        """
        self._directory = Path(directory).absolute()
        self._report = report
        self._hosts = hosts or Hosts()
        self._read_only = config is None
        if config is not None and self._hosts.is_main:
            self._remove_unfinished()
        # Orbax's own log lines (dozens a save) would bury the run's; what fails is raised, and reported here in a line.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep_latest if config else None,
            keep_period=(config.keep_every or None) if config else None,
            create=config is not None,
            read_only=self._read_only,
            enable_async_checkpointing=config is not None,
            # Two managers of one run save at the same time, and their hosts wait for each other by name.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self._directory.name),
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {self._directory}: {error.strerror or error}") from error

    @property
    def last_good(self) -> int | None:
        """Return the newest step whose checkpoint is whole on disk (one that is being written has another name)."""
        steps = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
        return max(steps, default=None)

    def settle(self) -> int | None:
        """Wait for the save under way, whatever becomes of it, and return the newest step that is whole on disk."""
        with contextlib.suppress(UserError):
            self.wait()
        return self.last_good

    def save(self, step: int, *, state: Any, metadata: dict[str, Any]) -> None:
        """Begin to save; returns once the state is copied off the devices, or at once if `step` is saved already.

        Raises:
          UserError: if this or the previous checkpoint could not be written.
        """
        if step in self._manager.all_steps():
            return
        record = {**metadata, "checksums": checksums(state)}
        record["digest"] = _digest(record)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(record))
        self._guard(lambda: self._manager.save(step, args=items, force=True))

    def wait(self) -> None:
        """Wait until every checkpoint begun is on disk.

        Raises:
          UserError: if one could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def keep_only(self, wanted: Callable[[int], bool]) -> None:
        """Remove the checkpoints of all other steps; every host calls this."""
        self.wait()
        with self._hosts.main_first("checkpoints removed"):
            if self._hosts.is_main:
                for step in self.steps():
                    if not wanted(step):
                        shutil.rmtree(self._directory / str(step))
        self._manager.reload()

    def __enter__(self) -> "Checkpointer":
        """Return the checkpoints, to be closed at the end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish writing; after an error, that one is what the user must hear of."""
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Wait, then release the threads."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata of one checkpoint without its arrays.

        Raises:
          ValueError: if it is not what was written.
        """
        # Not through the manager, here and below: it ends with a collective, to which a host that fails does not come.
        record = load_json(self._directory / str(step) / "metadata" / "metadata")
        if record.pop("digest", None) != _digest(record):
            raise ValueError("the digest of its metadata differs")
        return record

    def restore(self, target: Callable[[dict[str, Any]], Any] | Any, *, step: int | None = None) -> Restored | None:
        """Return the newest good checkpoint (or that of `step`), or None if there is none at all.

        `target` is the abstract state with its shardings, or a function that makes it from the metadata. A damaged
        checkpoint is reported, and the one before it is tried; once that is read, unless reading only, the
        damaged one is renamed to `STEP.damaged-N`.

        Raises:
          UserError: if there are checkpoints but none can be read, memory or permission to read one is lacking, or
            hosts see different ones.
        """
        seen = self._agreed_steps() if self._hosts.count > 1 else self.steps()
        steps = [s for s in reversed(seen) if step is None or s == step]
        if step is not None and not steps:
            raise UserError(f"no checkpoint of step {step} in {self._directory}: there are {seen or 'none'}")
        for index, candidate in enumerate(steps):
            restored = self._read_or_reason(candidate, target)
            if isinstance(restored, Restored):
                for damaged in steps[:index]:
                    self._set_aside(damaged)
                return restored
            self._report(f"checkpoint of step {candidate} is damaged and is passed over: {restored}")
        aside = sorted(path.name for path in self._directory.glob("*.damaged-*"))
        if steps or aside:
            which = f"steps {sorted(steps)}" if steps else f"set aside before: {', '.join(aside)}"
            raise UserError(
                f"none of the checkpoints in {self._directory} can be read ({which}; all damaged): restore the "
                "directory from a backup, or start anew with another --workdir"
            )
        return None

    def _remove_unfinished(self) -> None:
        """Remove what a killed process had not finished writing: on spot machines a checkpoint for each preemption."""
        for path in self._directory.glob(f"*{UNFINISHED_CHECKPOINT}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _agreed_steps(self) -> list[int]:
        """Return the steps that have a checkpoint, as all hosts see them; a network disk may show one late.

        Raises:
          UserError: if the hosts go on seeing different ones.
        """
        for _ in range(_LISTINGS):
            self._manager.reload()
            steps = self.steps()
            told = self._hosts.exchange(self._hosts.numbered("checkpoints seen"), json.dumps(steps))
            if len(set(told)) == 1:
                return steps
            time.sleep(_LISTING_SECONDS)
        other = next(index for index, seen in enumerate(told) if seen != told[0])
        raise UserError(
            f"{self._hosts.name(other)} sees checkpoints {told[other]} in {self._directory}, {self._hosts.name(0)} "
            f"{told[0]}: --workdir must be one folder that all hosts share"
        )

    def _read_or_reason(self, step: int, target: Any) -> Restored | str:
        quiet_abandoned_reads()
        try:
            return self._read(step, target)
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file makes the reader raise
            return damage(error, step=step, directory=self._directory)

    def _read(self, step: int, target: Any) -> Restored:
        with self._together():
            metadata = self.metadata(step)
            abstract = ocp.args.StandardRestore(target(metadata) if callable(target) else target)
            directory = epath.Path(self._directory) / str(step) / "state"
            state = ocp.StandardCheckpointHandler().restore(directory, args=abstract)
        saved = metadata.pop("checksums", {})
        for name, checksum in checksums(state).items():
            if name in saved and saved[name] != checksum:
                raise ValueError(f"checksum of {name} differs")
        return Restored(step=step, state=state, metadata=metadata)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Fail on every host if the body fails on one, before any of them waits for the others' part."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever a damaged file makes the reader raise
            failure = error
        told = self._hosts.exchange(self._hosts.numbered("checkpoint read"), _reason(failure) if failure else "")
        if failure is not None:
            raise failure
        for index, reason in enumerate(told):
            if reason:
                raise ValueError(f"{self._hosts.name(index)}: {reason}")

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        if self._hosts.is_main:
            path = self._directory / str(step)
            number = 0
            while (aside := self._directory / f"{step}.damaged-{number}").exists():
                number += 1
            path.rename(aside)
            self._report(f"kept as {aside} for inspection")
        self._hosts.barrier(self._hosts.numbered("damaged checkpoint renamed"))
        self._manager.reload()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (OSError, ValueError, RuntimeError) as error:
            if self._hosts.count > 1 and is_lost_host_error(error):
                raise
            reason = " ".join(str(error).split())[:200]
            last = self.last_good
            good = "there is none before it" if last is None else f"the last good one is of step {last}"
            raise UserError(
                f"checkpoint could not be written to {self._directory} ({reason}); {good}: free disk space or mend the "
                "permissions, then run the same command again to resume"
            ) from error


@functools.cache
def quiet_abandoned_reads() -> None:
    """Print nothing of the errors of reads that Orbax has given up, from now on.

    It reads arrays concurrently and gives up at the first error: the reads still under way then fail on TensorStore's
    threads ("Event loop is closed") and, at any later time, when they are collected, each with a traceback of a
    hundred lines about a file that is reported in one. Everything else goes to the hook that was there.
    """
    before = sys.unraisablehook

    def hook(event: "sys.UnraisableHookArgs", /) -> None:
        if not is_abandoned_read(event):
            before(event)

    sys.unraisablehook = hook


def damage(error: Exception, *, step: int, directory: Path) -> str:
    """Return in a line how a checkpoint is damaged whose reading raised `error`.

    Raises:
      UserError: if its files may be whole but cannot be had now.
    """
    reason = _reason(error)
    if isinstance(error, (MemoryError, PermissionError)) or any(name in reason for name in _NOT_DAMAGE):
        raise UserError(
            f"checkpoint of step {step} in {directory} could not be read, and is not taken for damaged ({reason}): "
            "mend that and run the same command again"
        ) from error
    return reason


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__


def _digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of metadata, whatever the order of its names."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    def one(leaf: jax.Array) -> jax.Array:
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in leaves])


def checksums(state: Any) -> dict[str, int]:
    """Return the sum modulo 2^32 of every array's bits: the same for any sharding, changed by any flipped bit."""
    sums = jax.device_get(_sums(jax.tree.leaves(state)))
    return dict(zip(parameter_names(state), map(int, sums), strict=True))
