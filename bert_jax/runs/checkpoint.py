"""Save and restore {state, metadata} with Orbax: asynchronous, atomic, verified.

Every checkpoint contains a checksum per parameter, computed on the device from the bits in use and verified on restore.
A damaged checkpoint is quarantined by renaming it, and the last good one is used.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
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

from bert_jax.buckets import remedy_of
from bert_jax.config import CheckpointConfig
from bert_jax.errors import UserError
from bert_jax.jax_internals import (
    COMMITTED_CHECKPOINT,
    UNFINISHED_CHECKPOINT,
    is_abandoned_read,
    is_of_orbax_task,
)
from bert_jax.json_files import load_json, parse_object
from bert_jax.locations import is_bucket
from bert_jax.parallel.distributed import Hosts, is_lost_host_error
from bert_jax.training.policy import parameter_names

# Messages of TensorStore and the device runtime for files that are unavailable now but may be intact.
_NOT_DAMAGE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Input/output error")

_LISTINGS, _LISTING_SECONDS = 30, 2.0  # NFS clients cache a listing for up to a minute


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint."""

    step: int
    state: Any
    metadata: dict[str, Any]


class Checkpointer:
    """The checkpoints of one directory."""

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        config: CheckpointConfig | None = None,
        report: Callable[[str], None] = print,
        hosts: Hosts | None = None,
    ):
        """Open `directory`, read-only without `config`. All `hosts` must open it. One in a bucket is an `epath.Path`.

        Raises:
          UserError: if the directory cannot be created.
        """
        self._is_remote = is_bucket(directory)
        self._directory: Any = directory if self._is_remote else Path(directory).absolute()
        self._report = report
        self._hosts = hosts or Hosts()
        self._read_only = config is None
        if config is not None and self._hosts.is_main:
            self._remove_unfinished()
        # Orbax logs dozens of lines per save, which would hide the run's own. Failures are raised and reported here.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        quiet_abandoned_requests()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep_latest if config else None,
            keep_period=(config.keep_every or None) if config else None,
            create=config is not None,
            read_only=self._read_only,
            enable_async_checkpointing=config is not None,
            # Two managers of one run may save at the same time; their barriers need distinct names.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self._directory.name),
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self._directory} ({error.strerror or error}): choose another "
                "--workdir"
            ) from error

    @property
    def last_good(self) -> int | None:
        """Return the newest step with a complete checkpoint on disk (one being written has another name)."""
        steps = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
        if self._is_remote:
            steps = [step for step in steps if self._is_committed(step)]
        return max(steps, default=None)

    def settle(self) -> int | None:
        """Wait for the current save, ignore its failure, and return the newest step with a complete checkpoint."""
        with contextlib.suppress(UserError):
            self.wait()
        return self.last_good

    def save(self, step: int, *, state: Any, metadata: dict[str, Any]) -> None:
        """Start to save; return when the state is copied off the devices, or immediately if `step` is saved already.

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
        """Wait until all started checkpoints are on disk.

        Raises:
          UserError: if one could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def keep_only(self, is_kept: Callable[[int], bool]) -> None:
        """Remove the checkpoints of all steps for which `is_kept` is False. All hosts call this."""
        self.wait()
        with self._hosts.main_first("checkpoints removed"):
            if self._hosts.is_main:
                for step in self.steps():
                    if not is_kept(step):
                        shutil.rmtree(self._directory / str(step))
        self._manager.reload()

    def __enter__(self) -> "Checkpointer":
        """Return the checkpointer; leaving the context closes it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish writing; after an error, suppress failures of writing, so the user sees the first one."""
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Finish writing and release the threads."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata of one checkpoint, without reading its arrays.

        Raises:
          ValueError: if it is damaged.
        """
        # Here and below, the manager is not used to read: it ends with a collective, which a failed host does not join.
        file = self._directory / str(step) / "metadata" / "metadata"
        record = parse_object(file.read_bytes()) if self._is_remote else load_json(file, form=dict[str, Any])
        if record.pop("digest", None) != _digest(record):
            raise ValueError("the digest of its metadata differs")
        return record

    def restore(self, target: Callable[[dict[str, Any]], Any] | Any, *, step: int | None = None) -> Restored | None:
        """Return the newest good checkpoint (or that of `step`), or None if there are no checkpoints.

        `target` is the abstract state with its shardings, or a function that returns it for given metadata. A damaged
        checkpoint is reported, and the previous one is tried. If that succeeds, and unless read-only, the damaged one
        is renamed to `STEP.damaged-N`.

        Raises:
          UserError: if there are checkpoints but none can be read, if memory or permissions are insufficient, or if
            hosts see different checkpoints.
        """
        all_steps = self._agreed_steps() if self._hosts.count > 1 else self.steps()
        steps = [s for s in reversed(all_steps) if step is None or s == step]
        if step is not None and not steps:
            raise UserError(
                f"no checkpoint of step {step} in {self._directory}: available steps are {all_steps or 'none'}"
            )
        for index, candidate in enumerate(steps):
            restored = self._read_or_diagnose(candidate, target)
            if isinstance(restored, Restored):
                for damaged in steps[:index]:
                    self._quarantine(damaged)
                return restored
            self._report(f"checkpoint of step {candidate} is damaged and skipped: {restored}")
        quarantined = sorted(path.name for path in self._directory.glob("*.damaged-*"))
        if steps or quarantined:
            which = f"steps {sorted(steps)}" if steps else f"quarantined earlier: {', '.join(quarantined)}"
            raise UserError(
                f"none of the checkpoints in {self._directory} can be read ({which}; all damaged): restore the "
                "directory from a backup, or start from scratch with another --workdir"
            )
        return None

    def _remove_unfinished(self) -> None:
        """Remove partial checkpoints of killed processes: on spot machines there may be one per preemption."""
        for path in self._directory.glob(f"*{UNFINISHED_CHECKPOINT}*"):
            shutil.rmtree(path, ignore_errors=True)
        if self._is_remote:  # where they have their final names
            for path in self._directory.glob("*"):
                if path.name.isdecimal() and not self._is_committed(int(path.name)):
                    path.rmtree(missing_ok=True)

    def _is_committed(self, step: int) -> bool:
        return (self._directory / str(step) / COMMITTED_CHECKPOINT).exists()

    def _agreed_steps(self) -> list[int]:
        """Return the steps with a checkpoint once all hosts see the same; a network disk may show one late.

        Raises:
          UserError: if the hosts still see different ones after a minute.
        """
        for _ in range(_LISTINGS):
            self._manager.reload()
            steps = self.steps()
            listings = self._hosts.exchange(self._hosts.numbered("checkpoints seen"), json.dumps(steps))
            if len(set(listings)) == 1:
                return steps
            time.sleep(_LISTING_SECONDS)
        other = next(index for index, listing in enumerate(listings) if listing != listings[0])
        raise UserError(
            f"{self._hosts.name(other)} sees checkpoints {listings[other]} in {self._directory}, but "
            f"{self._hosts.name(0)} sees {listings[0]}: --workdir must be one folder shared by all hosts"
        )

    def _read_or_diagnose(self, step: int, target: Any) -> Restored | str:
        quiet_abandoned_requests()
        try:
            return self._read(step, target)
        except UserError:
            raise
        except Exception as error:  # a damaged file may raise anything
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
        """Fail on every host if the body fails on one, before any host waits for the others."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # a damaged file may raise anything
            failure = error
        reasons = self._hosts.exchange(self._hosts.numbered("checkpoint read"), _reason(failure) if failure else "")
        if failure is not None:
            raise failure
        for index, reason in enumerate(reasons):
            if reason:
                raise ValueError(f"{self._hosts.name(index)}: {reason}")

    def _quarantine(self, step: int) -> None:
        if self._read_only:
            return
        if self._hosts.is_main:
            path = self._directory / str(step)
            number = 0
            while (new_path := self._directory / f"{step}.damaged-{number}").exists():
                number += 1
            path.rename(new_path)
            self._report(f"damaged checkpoint quarantined as {new_path} for inspection")
        self._hosts.barrier(self._hosts.numbered("damaged checkpoint renamed"))
        self._manager.reload()

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            if not isinstance(error, OSError | ValueError | RuntimeError) and not remedy_of(error):
                raise
            if self._hosts.count > 1 and is_lost_host_error(error):
                raise
            reason = " ".join(str(error).split())[:200]
            last = self.last_good
            good = "there is no earlier one" if last is None else f"the last good one is of step {last}"
            raise UserError(
                f"checkpoint could not be written to {self._directory} ({reason}); {good}: free disk space or fix the "
                "permissions, then run the same command again to resume"
            ) from error


@functools.cache
def quiet_abandoned_requests() -> None:
    """Suppress the errors of reads and writes that Orbax has abandoned, from now on.

    Orbax reads and writes arrays concurrently and stops at the first error, such as a full disk. The remaining requests
    then fail on TensorStore's threads ("Event loop is closed"), and reads again when they are garbage-collected or when
    their event loop ends, each with a traceback of up to a hundred lines about a file that is already reported in one
    line. All other errors go to the previous hook and to asyncio's log.
    """
    previous = sys.unraisablehook

    def hook(event: "sys.UnraisableHookArgs", /) -> None:
        if not is_abandoned_read(event):
            previous(event)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: not is_of_orbax_task(record))


def damage(error: Exception, *, step: int, directory: os.PathLike) -> str:
    """Return a one-line description of the damage, for a checkpoint whose reading raised `error`.

    Raises:
      UserError: if its files may be intact but are unavailable now.
    """
    reason = _reason(error)
    unavailable = isinstance(error, (MemoryError, PermissionError)) or any(name in reason for name in _NOT_DAMAGE)
    if unavailable or (
        is_bucket(directory) and not isinstance(error, ValueError | FileNotFoundError) and remedy_of(error)
    ):
        raise UserError(
            f"checkpoint of step {step} in {directory} could not be read, but it may be intact ({reason}): fix the "
            "cause, then run the same command again"
        ) from error
    return reason


def _reason(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__


def _digest(record: dict[str, Any]) -> str:
    """Return the SHA-256 of metadata, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    def one(leaf: jax.Array) -> jax.Array:
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in leaves])


def checksums(state: Any) -> dict[str, int]:
    """Return the sum modulo 2^32 of every array's bits: independent of sharding, changed by any flipped bit."""
    sums = jax.device_get(_sums(jax.tree.leaves(state)))
    return dict(zip(parameter_names(state), map(int, sums), strict=True))
