"""Start jax.distributed and let the hosts of a run speak to each other: barriers, facts compared, failures told.

A host is a process. Where there is one, everything here returns at once. Nothing here runs on a device, so a host that
is missing or broken is found by name and within a time limit, not by a collective that never ends.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from bert_jax import jax_internals
from bert_jax.errors import UserError
from bert_jax.parallel.rendezvous import HostMissing, call_roll

USAGE_ERROR, LOST_A_HOST = 2, 75  # a launcher restarts on the second (EX_TEMPFAIL of sysexits.h)

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_POLL_SECONDS = 0.1
_FAREWELL_SECONDS = 10.0  # what host 0, which carries the messages, waits for the others to have read its last one
# What the device and coordination runtimes say of a host that is gone.
_LOSS = ("gloo", "coordination", "connection reset", "connection closed", "connection refused", "barrier", "heartbeat")


class HostFailed(UserError):
    """Repeat the error of another host, and the exit status that it ends with."""

    def __init__(self, message: str, *, status: int = USAGE_ERROR):
        """Hold the line and the status."""
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Know this host's number, the names of all, and the time limit of a barrier; by default the only host."""

    index: int = 0
    names: tuple[str, ...] = ("this host",)
    seconds: float = 600.0
    _uses: dict[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def count(self) -> int:
        """Return the number of hosts."""
        return len(self.names)

    @property
    def is_main(self) -> bool:
        """Return whether this is host 0, which alone writes what is not sharded."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Return what messages call a host."""
        return f"host {index} ({self.names[index]})"

    def exchange(
        self, topic: str, value: str = "", *, seconds: float | None = None, given_up: Callable[[], bool] = lambda: False
    ) -> list[str]:
        """Give `value` to all hosts and return the values of all, in order. A topic serves once.

        With `given_up` it returns an empty list once that says so.

        Raises:
          HostFailed: if another host stopped with an error.
          HostMissing: after `seconds` (default: those of `self`), naming the hosts that did not come to this point.
        """
        if self.count == 1:
            return [value]
        # Said again after a call that failed on its way, a value is the same.
        jax_internals.key_value_client().key_value_set(f"{topic}/{self.index}", value, allow_overwrite=True)
        limit = self.seconds if seconds is None else seconds
        deadline = time.monotonic() + limit
        while len(found := self._read(topic)) < self.count:
            if given_up():
                return []
            self._raise_failure()
            if time.monotonic() > deadline:
                missing = ", ".join(self.name(index) for index in range(self.count) if index not in found)
                raise HostMissing(
                    f"{missing} did not come to '{topic}' within {limit:g} seconds, {self.name(self.index)} waited: "
                    "see the output there, then start the same command on every host"
                )
            time.sleep(_POLL_SECONDS)
        return [found[index] for index in range(self.count)]

    def numbered(self, topic: str) -> str:
        """Return `topic` with the number of its use, for what all hosts do several times in the same order."""
        self._uses[topic] = self._uses.get(topic, 0) + 1
        return f"{topic} {self._uses[topic]}"

    def barrier(self, topic: str) -> None:
        """Wait until all hosts are here; errors as of `exchange`."""
        self.exchange(topic)

    def from_main(self, topic: str, value: Callable[[], Any]) -> Any:
        """Return what `value` returns on host 0, in JSON's types; the others wait for it without a time limit.

        Errors as of `exchange`.
        """
        told = json.dumps(value()) if self.is_main else ""
        return json.loads(self.exchange(self.numbered(topic), told, seconds=float("inf"))[0])

    @contextlib.contextmanager
    def main_first(self, topic: str) -> Iterator[None]:
        """Let host 0 run the body alone, then the others: they find done what it did.

        There is no time limit: what host 0 does may take hours, and jax.distributed's heartbeat notices its death.
        """
        topic = self.numbered(topic)
        if not self.is_main:
            self.exchange(topic, seconds=float("inf"))
        yield
        if self.is_main:
            self.exchange(topic, seconds=float("inf"))

    def check_same(self, topic: str, facts: Mapping[str, Any]) -> None:
        """Compare facts with host 0's.

        Raises:
          UserError: on every host, naming the hosts that differ, in what, and both values.
        """
        written = json.dumps(facts, sort_keys=True, default=str)
        told = [json.loads(text) for text in self.exchange(self.numbered(topic), written)]
        for index, theirs in enumerate(told):
            names = [name for name in {**told[0], **theirs} if theirs.get(name) != told[0].get(name)]
            if names:
                shown = ", ".join(f"{name} ({theirs.get(name)!r} beside {told[0].get(name)!r})" for name in names[:3])
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise UserError(
                    f"{self.name(index)} differs from {self.name(0)} in {shown}{more}: install the same code and start "
                    "the same command on every host"
                )

    def tell_failure(self, message: str, *, status: int = USAGE_ERROR) -> None:
        """Let every host that waits stop with `message` and `status`; host 0 stays until the others stop too.

        Without a message it tells only that this one does.
        """
        if self.count == 1:
            return
        with contextlib.suppress(RuntimeError):  # the messages' carrier may be gone itself
            jax_internals.key_value_client().key_value_set(
                f"failed/{self.index}", f"{status} {message}" if message else ""
            )
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while self.is_main and time.monotonic() < deadline and len(self._read("failed")) < self.count:
                time.sleep(_POLL_SECONDS)

    def set_once(self, key: str, value: str) -> None:
        """Set what no host has set yet."""
        with contextlib.suppress(RuntimeError):  # another was first
            jax_internals.key_value_client().key_value_set(f"{key}/value", value)

    def get(self, key: str) -> str | None:
        """Return what a host gave to `set_once`, or None."""
        return next((value for _, value in jax_internals.key_value_client().key_value_dir_get(f"{key}/")), None)

    def _read(self, topic: str) -> dict[int, str]:
        return {
            int(key.rpartition("/")[2]): value
            for key, value in jax_internals.key_value_client().key_value_dir_get(f"{topic}/")
        }

    def _raise_failure(self) -> None:
        for index, told in self._read("failed").items():
            status, _, message = told.partition(" ")
            if message:
                raise HostFailed(f"{self.name(index)} stopped: {message}", status=int(status))


def start(*, seconds: float) -> Hosts:
    """Join the other hosts of this run, if there are any; before any other use of jax.

    They are found as jax finds them (TPU pods, GKE, Slurm, MPI), or named by JAX_COORDINATOR_ADDRESS=HOST:PORT,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. `seconds` is how long any host waits for another.

    Raises:
      HostMissing: if a host does not start in time.
      UserError: if the variables contradict each other.
    """
    address, count, index, device_ids = _from_environment() or _detected(seconds=seconds)
    if count == 1:
        return Hosts(seconds=seconds)
    names = call_roll(address, index=index, count=count, seconds=seconds)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from StopRequest
    jax_internals.quiet("hosts")
    jax.distributed.initialize(
        address,
        num_processes=count,
        process_id=index,
        local_device_ids=device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=max(round(seconds), 30),
    )
    return Hosts(index=index, names=tuple(names), seconds=seconds)


def check_alone_or_all(hosts: Hosts) -> None:
    """Refuse devices of hosts that were not found at the start: each would train for itself, in one workdir.

    Raises:
      UserError: naming the variables to set.
    """
    if jax.process_count() != hosts.count:
        raise UserError(
            f"the accelerator has {jax.process_count()} hosts, but {hosts.count} started: set {ADDRESS}=HOST:PORT of "
            f"the first host, {COUNT} and {INDEX} on each of them"
        )


def _from_environment() -> tuple[str, int, int, None] | None:
    given = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
    if COUNT not in given and INDEX not in given:
        return None  # JAX_COORDINATOR_ADDRESS alone is jax's own, beside what it detects
    if len(given) < 3:
        missing = next(name for name in (ADDRESS, COUNT, INDEX) if name not in given)
        raise UserError(f"{missing} is not set, but {' and '.join(given)} are: set all three, or none")
    try:
        count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
    except ValueError as error:
        raise UserError(f"{COUNT} and {INDEX} must be numbers: {error}") from error
    if not 0 <= index < count:
        raise UserError(f"{INDEX}={index} does not fit {COUNT}={count}: hosts are numbered from 0 to {count - 1}")
    return os.environ[ADDRESS], count, index, None


def _detected(*, seconds: float) -> tuple[str, int, int, Any]:
    """Ask jax where it is, without starting anything.

    Raises:
      HostMissing: if there are several hosts and the first is not found.
    """
    alone = ("", 1, 0, None)
    hostnames = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or "COLAB_RELEASE_TAG" in os.environ:
        return alone
    if hostnames and "," not in hostnames and not os.environ.get("MEGASCALE_NUM_SLICES"):
        return alone  # a TPU machine by itself
    try:
        address, count, index, device_ids = jax_internals.detect_hosts(seconds=seconds)
    except Exception as error:  # whatever a metadata server that is none of Google's makes the request raise
        if "," in hostnames:
            raise HostMissing(
                f"host 0 of {len(hostnames.split(','))} was not found within {seconds:g} seconds "
                f"({' '.join(str(error).split())[:200]}): see that host's own output"
            ) from error
        print(f"one host: looking for others failed ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        return alone
    return (address, count, index, device_ids) if address and count and index is not None else alone


def tells_of_a_lost_host(error: BaseException) -> bool:
    """Return whether `error` is what the others' collectives and barriers raise when a host dies.

    Orbax hands on what its barriers raise as the cause of a TimeoutError.
    """
    if isinstance(error, TimeoutError) and isinstance(error.__cause__, RuntimeError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOSS)


def run_on_hosts(call: Callable[[Hosts], int], *, seconds: float) -> int:
    """Join the other hosts of this run, if there are any, and return what `call` returns, the exit status.

    Where this is one of several hosts and `call` fails, the process ends here, and the others are told why.
    """
    try:
        hosts = start(seconds=seconds)
    except HostMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return LOST_A_HOST
    with leaving_together(hosts):
        return call(hosts)
    raise AssertionError("leaving_together ends the process")


@contextlib.contextmanager
def leaving_together(hosts: Hosts) -> Iterator[None]:
    """End this process at once when the body fails on one of several hosts, and let the others know why.

    At an ordinary exit jax.distributed would wait minutes for hosts that are waiting for this one. Status 2 for what
    the user can mend, 75 where a host is missing or lost: trying again may help.
    """
    if hosts.count == 1:
        yield
        return
    try:
        yield
    except HostMissing as error:
        _leave(hosts, f"error: {error}", message=str(error), status=LOST_A_HOST)
    except HostFailed as error:
        _leave(hosts, f"error: {error}", message="", status=error.status)
    except UserError as error:
        _leave(hosts, f"error: {error}", message=str(error), status=USAGE_ERROR)
    except Exception as error:
        text = " ".join(str(error.__cause__ or error).split())
        if tells_of_a_lost_host(error):
            _leave(hosts, f"lost another host ({text[:300]}); the same command resumes", status=LOST_A_HOST)
        _leave(hosts, traceback.format_exc(), message=f"{type(error).__name__}: {text[:300]}", status=1)


def _leave(hosts: Hosts, text: str, *, message: str | None = None, status: int) -> None:
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if message is not None:
        hosts.tell_failure(message, status=status)
    os._exit(status)
