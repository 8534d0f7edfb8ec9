"""Hosts find each other, compare themselves, and stop together; whoever is missing or differs is named."""

import dataclasses
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.parallel import distributed
from bert_jax.parallel import mesh as meshes
from bert_jax.parallel.axes import AXES
from bert_jax.parallel.distributed import HostFailed, HostMissing, Hosts
from bert_jax.parallel.rendezvous import gather_names
from bert_jax.runs import stopping
from bert_jax.runs.stopping import AgreedStop, StopRequest
from tests.thread_hosts import Store, hosts_in_threads, together


def free_address() -> str:
    """Return an address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"localhost:{probe.getsockname()[1]}"


def roll(address: str, index: int, *, count: int = 3, seconds: float = 60) -> Callable[[], list[str]]:
    return lambda: gather_names(address, index=index, count=count, seconds=seconds, name=f"h{index}")


def test_the_rendezvous_gives_every_host_the_names_of_all_and_frees_the_port() -> None:
    address = free_address()
    for _ in range(2):  # as at a restart
        assert together(*(roll(address, index) for index in (2, 0, 1))) == [["h0", "h1", "h2"]] * 3
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        pass


def test_a_host_that_never_starts_is_named_on_every_other() -> None:
    address = free_address()
    for error in together(roll(address, 0, seconds=1), roll(address, 2, seconds=1)):
        assert isinstance(error, HostMissing)
        assert "host 1 of 3 did not start within 1 seconds" in str(error)
        assert "\n" not in str(error)


def test_the_first_host_that_never_starts_is_named() -> None:
    with pytest.raises(HostMissing, match=r"host 0 of 2 did not start within 0\.5 seconds"):
        roll(free_address(), 1, count=2, seconds=0.5)()


def test_hosts_told_of_different_numbers_are_named() -> None:
    address = free_address()
    for error in together(roll(address, 0, count=2), roll(address, 1, count=4)):
        assert isinstance(error, UserError)
        assert "host 1 (h1) expects 4 hosts, host 0 (h0) expects 2" in str(error)


def test_a_stranger_on_the_port_is_not_counted() -> None:
    address = free_address()

    greeted = threading.Event()

    def stranger() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("localhost", int(address.rpartition(":")[2])), timeout=1) as connection:
                    connection.sendall(b"GET / HTTP/1.1\n")
                    greeted.set()
                    return
            except OSError:  # host 0 does not listen yet
                time.sleep(0.05)

    def late() -> list[str]:
        assert greeted.wait(60)
        return roll(address, 1, count=2)()

    assert together(roll(address, 0, count=2), stranger, late)[::2] == [["h0", "h1"]] * 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES is not set"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "from 0 to 1"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2147483648", "JAX_PROCESS_ID": "0"},
            "at most 100,000",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "2"},
            "must be whole numbers",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "here", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "write HOST:PORT"),
    ],
)
def test_variables_that_contradict_each_other_are_one_line(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    for name in (distributed.ADDRESS, distributed.COUNT, distributed.INDEX):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says) as caught:
        distributed.start(seconds=1)
    assert "\n" not in str(caught.value)


def test_a_machine_by_itself_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (distributed.ADDRESS, distributed.COUNT, distributed.INDEX):
        monkeypatch.delenv(name, raising=False)
    hosts = distributed.start(seconds=1)
    assert (hosts.count, hosts.is_main) == (1, True)
    assert hosts.exchange("anything", "value") == ["value"]
    distributed.check_all_joined(hosts)
    with pytest.raises(UserError, match="has 1 hosts, but 2 started"):
        distributed.check_all_joined(Hosts(names=("a", "b")))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[Hosts]:
    """Return three hosts that are threads; a minute is enough for all of them to come on any machine."""
    return hosts_in_threads(monkeypatch, "alpha", "beta", "gamma", seconds=60, store=store)


@pytest.fixture
def impatient(hosts: list[Hosts]) -> list[Hosts]:
    """Return the hosts with half a second for another that does not come at all."""
    return [dataclasses.replace(host, seconds=0.5) for host in hosts]


def test_values_are_exchanged_in_the_order_of_the_hosts(hosts: list[Hosts]) -> None:
    calls = [lambda host=host: host.exchange("topic", f"of {host.index}") for host in reversed(hosts)]
    assert together(*calls) == [["of 0", "of 1", "of 2"]] * 3


def test_a_barrier_names_the_host_that_does_not_come(impatient: list[Hosts]) -> None:
    first, _, third = impatient
    for error in together(lambda: first.barrier("data"), lambda: third.barrier("data")):
        assert isinstance(error, HostMissing)
        assert "host 1 (beta) did not reach 'data' within 0.5 seconds" in str(error)


def test_a_host_that_differs_is_named_with_both_values(hosts: list[Hosts]) -> None:
    facts = {"config.train.batch_size": 16, "code": "abc", "vocabulary": "x"}
    given = [facts, facts, {**facts, "config.train.batch_size": 32, "vocabulary": "y"}]
    for error in together(*(lambda host=host: host.check_same("facts", given[host.index]) for host in hosts)):
        assert "host 2 (gamma) differs from host 0 (alpha) in config.train.batch_size (32 vs. 16), voc" in str(error)
        assert "beta" not in str(error)
    assert together(*(lambda host=host: host.check_same("again", facts) for host in hosts)) == [None] * 3


def test_the_first_host_works_alone_and_the_others_behind_it(hosts: list[Hosts]) -> None:
    order: list[int] = []
    overtaken = threading.Event()

    def work(host: Hosts) -> None:
        with host.main_first("work"):
            if host.is_main:
                assert not overtaken.wait(0.3)
            else:
                overtaken.set()
            order.append(host.index)

    together(*(lambda host=host: work(host) for host in hosts))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_the_error_of_one_host_ends_the_waiting_of_the_others(hosts: list[Hosts]) -> None:
    def wait(host: Hosts) -> None:
        try:
            host.barrier("a point never reached")
        except HostFailed:
            host.report_failure("")  # what every host does that ends
            raise

    first, second, _ = together(
        lambda: wait(hosts[1]), lambda: wait(hosts[2]), lambda: hosts[0].report_failure("no text was found")
    )
    for error in (first, second):
        assert isinstance(error, HostFailed)
        assert str(error) == "host 0 (alpha) stopped: no text was found"


class Exited(BaseException):
    """Stand for the end of a process."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(distributed.os, "_exit", leave)
    monkeypatch.setattr(distributed, "_FAREWELL_SECONDS", 2.0)


def end(host: Hosts, error: Exception | None = None) -> Callable[[], int]:
    """Return a call of what a host does that fails with `error`, or waits for the others; it gives the exit status."""

    def call() -> int:
        try:
            with distributed.exiting_together(host):
                if error is not None:
                    raise error
                host.barrier("a point that not all reach")
        except Exited as exited:
            return exited.args[0]
        return -1

    return call


@pytest.mark.usefixtures("exits")
def test_all_who_wait_for_a_missing_host_end_with_the_status_that_a_launcher_restarts_on(
    hosts: list[Hosts], impatient: list[Hosts], capsys: pytest.CaptureFixture[str]
) -> None:
    # The first host's own time is not up when the other tells of its end.
    assert together(end(hosts[0]), end(impatient[1])) == [75, 75]
    assert "did not reach 'a point that not all reach'" in capsys.readouterr().err


@pytest.mark.usefixtures("exits")
@pytest.mark.parametrize(
    ("error", "status"),
    [(UserError("no text was found"), 2), (ValueError("a defect"), 1), (RuntimeError("Gloo: connection reset"), 75)],
)
def test_all_hosts_end_with_the_status_of_the_one_that_failed(
    error: Exception, status: int, hosts: list[Hosts], impatient: list[Hosts]
) -> None:
    first, second, third = impatient if status == 75 else hosts  # of a lost host nobody is told: time has to run out
    ended = together(end(first, error), end(second), end(third))
    assert ended == [status, status, status]


def test_what_orbax_makes_of_a_lost_host_is_one() -> None:
    lost = TimeoutError("commit barrier")
    lost.__cause__ = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")
    assert distributed.is_lost_host_error(lost)
    assert not distributed.is_lost_host_error(TimeoutError("the disk"))


def test_several_hosts_of_which_the_first_is_not_found_are_not_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src import clusters

    def not_found(*_: object) -> None:
        raise RuntimeError("could not resolve host-0")

    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", not_found)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    with pytest.raises(HostMissing, match="host 0 of 2 was not found within 1 seconds"):
        distributed.start(seconds=1)


def play_until_stop(host: Hosts, *, request: StopRequest, step: threading.Barrier, ask_at: int) -> int:
    """Take steps that every host must take together, as collectives are; return the boundary of the stop."""
    with AgreedStop(request, hosts=host) as stop:
        for boundary in range(100_000):
            if host.index == 1 and boundary == ask_at:
                request.received = signal.SIGTERM
            if stop():
                assert stop.received == signal.SIGTERM
                return boundary
            step.wait(timeout=60)
            time.sleep(0.002 * (host.index + 1))
    return -1


@pytest.mark.parametrize("ask_at", [0, 1, 20])
def test_all_hosts_stop_at_one_boundary_when_one_is_asked_to(hosts: list[Hosts], ask_at: int) -> None:
    step = threading.Barrier(len(hosts))
    boundaries = together(
        *(lambda host=host: play_until_stop(host, request=StopRequest(), step=step, ask_at=ask_at) for host in hosts)
    )
    assert len(set(boundaries)) == 1
    assert boundaries[0] > ask_at


@pytest.mark.parametrize("failures", [[True], [False, True], [False] * 8 + [True] * 3])
def test_a_message_that_fails_on_its_way_does_not_stop_the_hosts_apart(
    hosts: list[Hosts], store: Store, monkeypatch: pytest.MonkeyPatch, failures: list[bool]
) -> None:
    monkeypatch.setattr(stopping, "_POLL_SECONDS", 0.02)
    store.failing["agreed stop"] = itertools.chain(failures, itertools.repeat(False))
    step = threading.Barrier(len(hosts))
    boundaries = together(
        *(lambda host=host: play_until_stop(host, request=StopRequest(), step=step, ask_at=5) for host in hosts)
    )
    assert len(set(boundaries)) == 1
    assert boundaries[0] > 5


def test_hosts_that_cannot_agree_on_a_stop_end_within_the_time_limit(impatient: list[Hosts]) -> None:
    request = StopRequest()
    request.received = signal.SIGTERM
    with AgreedStop(request, hosts=impatient[0]) as stop:  # the others have gone
        deadline = time.monotonic() + 60
        while not stop._failure and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(HostMissing, match="did not reach 'boundary passed'"):
            stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_spoken_of_to_who_typed_it(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest() as request:
        os.kill(os.getpid(), number)
    assert request.received == number
    text = capfd.readouterr().err.strip()
    assert text.startswith("stopping after this step, then saving")
    assert ("Ctrl-C" in text) == (number == signal.SIGINT)
    assert len(text) <= 80


class FakeDevice:
    """Stand for a device of some host."""

    def __init__(self, process_index: int):
        self.process_index = process_index


class FakeMesh:
    """Stand for a mesh over several hosts."""

    def __init__(self, processes: Any):
        self.devices = np.vectorize(FakeDevice)(np.asarray([processes]))
        self.shape = dict(zip(AXES, self.devices.shape, strict=True))


@pytest.mark.parametrize(
    ("processes", "held"),
    [
        ([[[0]], [[0]], [[1]], [[1]]], [(0, 1), (2, 3)]),
        ([[[0], [1]], [[0], [1]]], [(0, 2), (1, 3)]),  # a mesh that follows the links of a pod
        ([[[0, 1]], [[0, 1]]], [(0, 1), (0, 1)]),  # hosts that differ only along `tensor`
        ([[[0, 0], [1, 1]]], [(0,), (1,)]),
    ],
    ids=["blocks", "interleaved", "tensor across hosts", "tensor inside hosts"],
)
def test_each_host_reads_the_shares_that_its_devices_hold(processes: Any, held: list[tuple[int, ...]]) -> None:
    mesh: Any = FakeMesh(processes)
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    assert [meshes.batch_shards(mesh, host=host) for host in range(2)] == [(shares, count) for shares in held]
