"""The rendezvous of hosts before jax.distributed starts, which names hosts that do not start.

If a host is missing, jax's start-up aborts the process without an exception and without a name. In the rendezvous,
host 0 listens on the coordinator's address until every host has connected, sends each of them the names of all, and
frees the address for jax.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any, TypedDict

from bert_jax.errors import UserError
from bert_jax.json_files import parse_json, parse_object
from bert_jax.json_forms import Count, fit

_RETRY_SECONDS = 0.2  # between the attempts of a host that gets no answer
_GRACE_SECONDS = 30.0  # host 0 may start to wait this much later than the others
_MAX_LINE = 1 << 20
_MAX_PORT = 65535


class _Greeting(TypedDict):
    """The message of a host to host 0."""

    index: Count
    count: Count
    name: str


class HostMissing(UserError):
    """Hosts did not start in time; a launcher may retry."""


def gather_names(address: str, *, index: int, count: int, seconds: float, name: str = "") -> list[str]:
    """Wait until all `count` hosts have connected and return their names in order.

    `address` is HOST:PORT of host 0, `index` this host's number, `name` its name in messages (default: its hostname).

    Raises:
      HostMissing: after `seconds`, naming the hosts that did not connect.
      UserError: if the hosts have different values of `count`.
    """
    name = name or socket.gethostname()
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) <= _MAX_PORT:
        raise UserError(
            f"coordinator address {address!r}: write HOST:PORT with a port from 1 to {_MAX_PORT}, for example "
            "10.0.0.1:8476"
        )
    if index == 0:
        answer = _Server(int(port), count=count, seconds=seconds, name=name).wait()
    else:
        answer = _connect(host, int(port), {"index": index, "count": count, "name": name}, seconds=seconds)
    if "differs" in answer:
        raise UserError(answer["differs"])
    if "missing" in answer:
        raise HostMissing(_missing(answer["missing"], count=count, seconds=seconds))
    return answer["names"]


def _missing(hosts: Sequence[int], *, count: int, seconds: float) -> str:
    listed = ", ".join(map(str, hosts))
    return (
        f"host{'s' if len(hosts) > 1 else ''} {listed} of {count} did not start within {seconds:g} seconds: see "
        "the output there for the reason, then start the same command there"
    )


class _Server:
    """The side of host 0, which collects the names."""

    def __init__(self, port: int, *, count: int, seconds: float, name: str):
        self._port, self._count, self._seconds = port, count, seconds
        self._names: dict[int, str] = {0: name}
        self._connections: dict[int, socket.socket] = {}
        self._unread: dict[socket.socket, bytes] = {}

    def wait(self) -> dict[str, Any]:
        """Return, and send to every host, the names of all hosts or the numbers of the missing hosts."""
        deadline = time.monotonic() + self._seconds
        answer: dict[str, Any] = {}
        with self._listen() as server, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while not answer and len(self._names) < self._count:
                left = deadline - time.monotonic()
                if left <= 0:
                    answer = {"missing": sorted(set(range(self._count)) - self._names.keys())}
                    break
                for key, _ in selector.select(left):
                    if key.fileobj is server:
                        connection, _ = server.accept()
                        self._unread[connection] = b""
                        selector.register(connection, selectors.EVENT_READ)
                    else:
                        answer = answer or self._read(key.fileobj, selector)
            answer = answer or {"names": [self._names[i] for i in range(self._count)]}
        self._send(answer)
        return answer

    def _listen(self) -> socket.socket:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", self._port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", self._port))
        except OSError as error:
            raise UserError(
                f"coordinator port {self._port} of this host is unavailable ({error.strerror}): end the process that "
                "uses it, or choose another port in JAX_COORDINATOR_ADDRESS"
            ) from error

    def _read(self, connection: Any, selector: selectors.BaseSelector) -> dict[str, Any]:
        """Read a host's message; return an answer for all hosts if that host cannot belong to this run."""
        try:
            data = connection.recv(4096)
        except OSError:
            data = b""
        self._unread[connection] += data
        if data and not self._unread[connection].endswith(b"\n") and len(self._unread[connection]) < _MAX_LINE:
            return {}
        selector.unregister(connection)
        try:
            message: _Greeting = fit(parse_json(self._unread.pop(connection)), _Greeting)
            index, count, name = message["index"], message["count"], message["name"]
        except ValueError:  # not a host of this run
            connection.close()
            return {}
        self._connections[index] = connection  # the latest connection: a restarted host connects again
        self._names[index] = name
        if count != self._count or not 0 < index < count:
            return {
                "differs": f"host {index} ({name}) expects {count} hosts, host 0 ({self._names[0]}) expects "
                f"{self._count}: start every host with the same number of hosts"
            }
        return {}

    def _send(self, answer: dict[str, Any]) -> None:
        line = json.dumps(answer).encode() + b"\n"
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(line)
                # The other side closes first: a half-closed connection here would keep the port busy when jax starts.
                connection.settimeout(1.0)
                connection.recv(1)
        for connection in (*self._connections.values(), *self._unread):
            connection.close()


def _connect(host: str, port: int, message: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds + _GRACE_SECONDS
    reached = False
    while time.monotonic() < deadline and (reached or time.monotonic() < deadline - _GRACE_SECONDS):
        with contextlib.suppress(OSError, ValueError), socket.create_connection((host, port), timeout=5) as connection:
            reached = True
            connection.sendall(json.dumps(message).encode() + b"\n")
            connection.settimeout(max(deadline - time.monotonic(), 0.1))
            return parse_object(_line(connection))
        reached = False
        time.sleep(_RETRY_SECONDS)
    return {"missing": [0]}


def _line(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        data = connection.recv(65536)
        if not data:
            raise OSError("host 0 closed the connection")
        received += data
    return received
