"""Turn Ctrl-C and SIGTERM into a request to stop, at the same step boundary on every host."""

import contextlib
import os
import signal
import threading
import time
import types

from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.parallel.rendezvous import HostMissing

_POLL_SECONDS = 0.25  # a preemption notice comes 30 seconds in advance


class StopRequest:
    """A context manager that records SIGINT and SIGTERM; a second Ctrl-C interrupts immediately."""

    def __init__(self) -> None:
        """Start without a request."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            # None means a handler that was not set by Python (jax < 0.8 sets one with several hosts).
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.received is not None

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        again = b"; Ctrl-C again stops without saving" if number == signal.SIGINT else b""
        # os.write: printing is not safe in the middle of another print.
        os.write(2, b"\nstopping after this step, then saving" + again + b"\n")


class AgreedStop:
    """Agreement of all hosts to stop at the same step boundary, once any of them has a request.

    A thread watches for requests. When there is one, each host's thread publishes the number of the last boundary that
    its loop passed, and all hosts stop at the boundary after the largest. Threads are necessary because a loop may be
    inside a step that ends only when the other hosts run it too: no thread waits for a loop, so no host waits forever.
    A message that fails is sent again, until the time limit of a barrier.
    """

    def __init__(self, request: StopRequest, *, hosts: Hosts):
        """Watch `request` inside the context; all hosts call this once per boundary, from the same one on."""
        self._request, self._hosts = request, hosts
        self._passed = 0
        self._stop_at: int | None = None
        self._failure: UserError | None = None
        self._agreeing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agreed stop", daemon=True)

    @property
    def received(self) -> signal.Signals | None:
        """Return the signal, received by any host."""
        if self._hosts.count == 1 or self._request.received is not None:
            return self._request.received
        number = self._hosts.get("stop requested")
        return signal.Signals(int(number)) if number else None

    def __enter__(self) -> "AgreedStop":
        """Start the thread."""
        if self._hosts.count > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._closed.set()
        if self._hosts.count > 1:
            self._thread.join()

    def __call__(self) -> bool:
        """Return whether to stop at this boundary.

        Raises:
          HostMissing: if the hosts could not agree within the time limit.
          HostFailed: if another host stopped with an error.
        """
        if self._hosts.count == 1:
            return self._request()
        with self._agreeing:
            if self._failure is not None:
                raise self._failure
            self._passed += 1
            return self._stop_at is not None and self._passed >= self._stop_at

    def _watch(self) -> None:
        is_requested = False
        while not is_requested and not self._closed.wait(_POLL_SECONDS):
            with contextlib.suppress(RuntimeError):  # a failed call; the next one may succeed
                if self._request():
                    assert self._request.received is not None
                    self._hosts.set_once("stop requested", str(int(self._request.received)))
                is_requested = self._hosts.get("stop requested") is not None
        if is_requested:
            self._agree()

    def _agree(self) -> None:
        """Block the loop at its boundary while all hosts exchange theirs."""
        deadline = time.monotonic() + self._hosts.seconds
        with self._agreeing:
            while not self._closed.is_set():
                remaining = max(deadline - time.monotonic(), 0.0)
                try:
                    passed = self._hosts.exchange(
                        "boundary passed", str(self._passed), seconds=remaining, is_abandoned=self._closed.is_set
                    )
                except UserError as error:
                    self._failure = error
                    return
                except RuntimeError as error:
                    if remaining == 0.0:
                        self._failure = HostMissing(f"the hosts could not agree on a step to stop at: {error}")
                        return
                    time.sleep(_POLL_SECONDS)
                    continue
                if passed:
                    self._stop_at = max(map(int, passed)) + 1
                return
