"""The hosts of a run: start-up of jax.distributed, barriers, exchange and comparison of values, failure reports.

"Host" means a process. With one host, everything here returns at once. Nothing here runs on a device, so a missing or
failed host is reported by name and within a time limit, not by a collective that hangs.
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
from bert_jax.files import system_error
from bert_jax.json_files import parse_json
from bert_jax.limits import check_address_space
from bert_jax.parallel.rendezvous import HostMissing, gather_names

USAGE_ERROR, LOST_A_HOST = 2, 75  # a launcher restarts the run on 75 (EX_TEMPFAIL of sysexits.h)

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_MAX_HOSTS = 100_000  # the largest slices have some 3,000; the first host keeps a list of those that it waits for
_POLL_SECONDS = 0.1
_MAX_SECONDS = 1e7  # jax takes the limit as 32-bit milliseconds or seconds, depending on its version
_FAREWELL_SECONDS = 10.0  # host 0 serves the messages: it waits this long for the others to read its last one
# Words in the errors of the device and coordination runtimes when a host is lost.
_LOSS = ("gloo", "coordination", "connection reset", "connection closed", "connection refused", "barrier", "heartbeat")


class HostFailed(UserError):
    """The error of another host, and that host's exit status."""

    def __init__(self, message: str, *, status: int = USAGE_ERROR):
        """Store the message and the status."""
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This host's index, the names of all hosts, and the time limit of a barrier; by default a single host."""

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
        """Return whether this is host 0, the only one that writes files that are not sharded."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Return the name of a host for messages."""
        return f"host {index} ({self.names[index]})"

    def exchange(
        self,
        topic: str,
        value: str = "",
        *,
        seconds: float | None = None,
        is_abandoned: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Send `value` to all hosts and return the values of all hosts, in order. Use each topic once.

        Once `is_abandoned` returns True, the result is an empty list.

        Raises:
          HostFailed: if another host stopped with an error.
          HostMissing: after `seconds` (default: those of `self`), naming the hosts that did not reach this point.
        """
        if self.count == 1:
            return [value]
        # A retry after a failed call writes the same value.
        jax_internals.key_value_client().key_value_set(f"{topic}/{self.index}", value, allow_overwrite=True)
        limit = self.seconds if seconds is None else seconds
        deadline = time.monotonic() + limit
        while len(values := self._read(topic)) < self.count:
            if is_abandoned():
                return []
            self._raise_failure()
            if time.monotonic() > deadline:
                missing = ", ".join(self.name(index) for index in range(self.count) if index not in values)
                raise HostMissing(
                    f"{missing} did not reach '{topic}' within {limit:g} seconds ({self.name(self.index)} waited): "
                    "see the output of that host, then start the same command on every host"
                )
            time.sleep(_POLL_SECONDS)
        return [values[index] for index in range(self.count)]

    def numbered(self, topic: str) -> str:
        """Return `topic` with a counter, for operations that all hosts repeat in the same order."""
        self._uses[topic] = self._uses.get(topic, 0) + 1
        return f"{topic} {self._uses[topic]}"

    def barrier(self, topic: str) -> None:
        """Wait until all hosts are here; the errors are those of `exchange`."""
        self.exchange(topic)

    def from_main(self, topic: str, value: Callable[[], Any]) -> Any:
        """Return the result of `value` on host 0, in JSON types; the other hosts wait for it without a time limit.

        The errors are those of `exchange`.
        """
        text = json.dumps(value()) if self.is_main else ""
        return parse_json(self.exchange(self.numbered(topic), text, seconds=float("inf"))[0])

    @contextlib.contextmanager
    def main_first(self, topic: str) -> Iterator[None]:
        """Run the body on host 0 first, then on the other hosts, which find its work done.

        There is no time limit: the work may take hours, and jax.distributed's heartbeat detects it if host 0 dies.
        """
        topic = self.numbered(topic)
        if not self.is_main:
            self.exchange(topic, seconds=float("inf"))
        yield
        if self.is_main:
            self.exchange(topic, seconds=float("inf"))

    def check_same(self, topic: str, facts: Mapping[str, Any]) -> None:
        """Check that all hosts have the same `facts` as host 0.

        Raises:
          UserError: on every host, naming the host that differs, the facts, and both values.
        """
        text = json.dumps(facts, sort_keys=True, default=str)
        per_host = [parse_json(answer) for answer in self.exchange(self.numbered(topic), text)]
        for index, other in enumerate(per_host):
            names = [name for name in {**per_host[0], **other} if other.get(name) != per_host[0].get(name)]
            if names:
                shown = ", ".join(f"{name} ({other.get(name)!r} vs. {per_host[0].get(name)!r})" for name in names[:3])
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise UserError(
                    f"{self.name(index)} differs from {self.name(0)} in {shown}{more}: install the same code and start "
                    "the same command on every host"
                )

    def report_failure(self, message: str, *, status: int = USAGE_ERROR) -> None:
        """Make every waiting host stop with `message` and `status`; host 0 waits until the others have stopped.

        An empty message reports only that this host stops.
        """
        if self.count == 1:
            return
        with contextlib.suppress(RuntimeError):  # host 0, which serves the messages, may be lost itself
            jax_internals.key_value_client().key_value_set(
                f"failed/{self.index}", f"{status} {message}" if message else ""
            )
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while self.is_main and time.monotonic() < deadline and len(self._read("failed")) < self.count:
                time.sleep(_POLL_SECONDS)

    def set_once(self, key: str, value: str) -> None:
        """Set a value unless another host has set it."""
        with contextlib.suppress(RuntimeError):  # another was first
            jax_internals.key_value_client().key_value_set(f"{key}/value", value)

    def get(self, key: str) -> str | None:
        """Return the value that a host passed to `set_once`, or None."""
        return next((value for _, value in jax_internals.key_value_client().key_value_dir_get(f"{key}/")), None)

    def _read(self, topic: str) -> dict[int, str]:
        return {
            int(key.rpartition("/")[2]): value
            for key, value in jax_internals.key_value_client().key_value_dir_get(f"{topic}/")
        }

    def _raise_failure(self) -> None:
        for index, report in self._read("failed").items():
            status, _, message = report.partition(" ")
            if message:
                raise HostFailed(f"{self.name(index)} stopped: {message}", status=int(status))


def start(*, seconds: float) -> Hosts:
    """Join the other hosts of this run, if there are any. Call it before any other use of jax.

    jax detects the hosts (TPU pods, GKE, Slurm, MPI), or JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID name them. `seconds` is how long a host waits for another.

    Raises:
      HostMissing: if a host does not start in time.
      UserError: if the variables contradict each other, or `seconds` is not a usual number.
    """
    if not 0 < seconds <= _MAX_SECONDS:
        raise UserError(f"--host_timeout={seconds:g}: must be a number of seconds above 0 and at most {_MAX_SECONDS:g}")
    address, count, index, device_ids = _from_environment() or _detected(seconds=seconds)
    if count == 1:
        return Hosts(seconds=seconds)
    names = gather_names(address, index=index, count=count, seconds=seconds)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM in place of StopRequest
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


def check_all_joined(hosts: Hosts) -> None:
    """Check that all hosts of the accelerator joined at the start: otherwise each would train alone in one workdir.

    Raises:
      UserError: naming the variables to set.
    """
    if jax.process_count() != hosts.count:
        raise UserError(
            f"the accelerator has {jax.process_count()} hosts, but {hosts.count} started: on every host, set "
            f"{ADDRESS}=HOST:PORT (of the first host), {COUNT} and {INDEX}"
        )


def _from_environment() -> tuple[str, int, int, None] | None:
    present = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
    if COUNT not in present and INDEX not in present:
        return None  # JAX_COORDINATOR_ADDRESS alone is for jax, which detects the rest
    if len(present) < 3:
        missing = next(name for name in (ADDRESS, COUNT, INDEX) if name not in present)
        raise UserError(f"{missing} is not set, unlike {' and '.join(present)}: set all three, or none")
    try:
        count, index = int(os.environ[COUNT]), int(os.environ[INDEX])
    except ValueError as error:
        raise UserError(f"{COUNT} and {INDEX} must be whole numbers: {error}") from error
    if count > _MAX_HOSTS:
        raise UserError(f"{COUNT}={count}: at most {_MAX_HOSTS:,} hosts are supported: set the number that you start")
    if not 0 <= index < count:
        raise UserError(f"{INDEX}={index} does not fit {COUNT}={count}: number the hosts from 0 to {count - 1}")
    return os.environ[ADDRESS], count, index, None


def _detected(*, seconds: float) -> tuple[str, int, int, Any]:
    """Return address, number of hosts, index and devices as jax detects them, without starting anything.

    Raises:
      HostMissing: if there are several hosts and the first is not found.
    """
    alone = ("", 1, 0, None)
    hostnames = os.environ.get("TPU_WORKER_HOSTNAMES", "").replace(jax_internals.QUIET_HOSTNAME, "")
    if os.environ.get("JAX_PLATFORMS") == "cpu" or "COLAB_RELEASE_TAG" in os.environ:
        return alone
    if hostnames and "," not in hostnames and not os.environ.get("MEGASCALE_NUM_SLICES"):
        return alone  # a single TPU machine
    try:
        address, count, index, device_ids = jax_internals.detect_hosts(seconds=seconds)
    except Exception as error:  # anything: the metadata server may not be Google's
        if "," in hostnames:
            raise HostMissing(
                f"host 0 of {len(hostnames.split(','))} was not found within {seconds:g} seconds "
                f"({' '.join(str(error).split())[:200]}): see the output of that host"
            ) from error
        print(f"running on one host: detecting others failed ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        return alone
    return (address, count, index, device_ids) if address and count and index is not None else alone


def is_lost_host_error(error: BaseException) -> bool:
    """Return whether collectives or barriers raise this error when another host dies.

    Orbax raises a TimeoutError with the error of its barrier as the cause.
    """
    if isinstance(error, TimeoutError) and isinstance(error.__cause__, RuntimeError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOSS)


def run_on_hosts(call: Callable[[Hosts], int], *, seconds: float) -> int:
    """Join the other hosts of this run, if there are any, and return the exit status, the result of `call`.

    If there are several hosts and `call` fails, the process exits here and reports the reason to the others.
    """
    check_address_space()
    try:
        hosts = start(seconds=seconds)
    except HostMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return LOST_A_HOST
    with exiting_together(hosts):
        return call(hosts)
    raise AssertionError("exiting_together ends the process")


@contextlib.contextmanager
def exiting_together(hosts: Hosts) -> Iterator[None]:
    """Exit at once if the body fails on one of several hosts, and report the reason to the others.

    At an ordinary exit, jax.distributed would wait minutes for hosts that wait for this one. The exit status is 2 for
    errors that the user can fix, and 75 if a host is missing or lost: a retry may help.
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
        if is_lost_host_error(error):
            _leave(hosts, f"lost another host ({text[:300]}); the same command resumes", status=LOST_A_HOST)
        if reason := system_error(error):
            _leave(hosts, f"error: {reason}", message=reason, status=USAGE_ERROR)
        _leave(hosts, traceback.format_exc(), message=f"{type(error).__name__}: {text[:300]}", status=1)


def _leave(hosts: Hosts, text: str, *, message: str | None = None, status: int) -> None:
    print(text, file=sys.stderr, flush=True)
    with contextlib.suppress(UserError, OSError):
        sys.stdout.flush()
    if message is not None:
        hosts.report_failure(message, status=status)
    os._exit(status)
