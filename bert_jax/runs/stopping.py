"""Turn Ctrl-C and SIGTERM into a request to stop at the next step boundary, the same one on every host."""

import contextlib
import os
import signal
import threading
import time
import types

from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.parallel.rendezvous import HostMissing

_POLL_SECONDS = 0.25  # a preemption notice comes 30 seconds ahead


class StopRequest:
    """Notice SIGINT and SIGTERM while in use; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        """Hold no request yet."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            # None stands for a handler that was not set in Python (jax < 0.8 sets one on several hosts).
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Return whether to stop."""
        return self.received is not None

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        # os.write: printing is not safe in the middle of another print.
        os.write(2, b"\nstopping behind this step, then saving; a second Ctrl-C stops at once, without\n")


class AgreedStop:
    """Answer on every host with the same step boundary once any of them has a request to stop.

    A thread watches for requests. When there is one, each host's thread tells the number of the boundary that its loop
    has passed, and all stop at the one behind the largest. Threads, because a loop may be inside a step that ends only
    when the other hosts take it too: no thread waits for a loop, so no host waits for ever. A message that fails on its
    way is sent again, until the time limit of a barrier.
    """

    def __init__(self, request: StopRequest, *, hosts: Hosts):
        """Watch `request` while in use; every host calls once a boundary, from the same one on."""
        self._request, self._hosts = request, hosts
        self._passed = 0
        self._stop_at: int | None = None
        self._failure: UserError | None = None
        self._agreeing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agreed stop", daemon=True)

    @property
    def received(self) -> signal.Signals | None:
        """Return the signal, wherever it was received."""
        if self._hosts.count == 1 or self._request.received is not None:
            return self._request.received
        told = self._hosts.get("stop requested")
        return signal.Signals(int(told)) if told else None

    def __enter__(self) -> "AgreedStop":
        """Begin to watch."""
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
          HostFailed: if another host stopped with an error meanwhile.
        """
        if self._hosts.count == 1:
            return self._request()
        with self._agreeing:
            if self._failure is not None:
                raise self._failure
            self._passed += 1
            return self._stop_at is not None and self._passed >= self._stop_at

    def _watch(self) -> None:
        asked = False
        while not asked and not self._closed.wait(_POLL_SECONDS):
            with contextlib.suppress(RuntimeError):  # a call that failed on its way; the next may not
                if self._request():
                    assert self._request.received is not None
                    self._hosts.set_once("stop requested", str(int(self._request.received)))
                asked = self._hosts.get("stop requested") is not None
        if asked:
            self._agree()

    def _agree(self) -> None:
        """Hold the loop at its boundary while all tell theirs."""
        deadline = time.monotonic() + self._hosts.seconds
        with self._agreeing:
            while not self._closed.is_set():
                left = max(deadline - time.monotonic(), 0.0)
                try:
                    passed = self._hosts.exchange(
                        "boundary passed", str(self._passed), seconds=left, is_abandoned=self._closed.is_set
                    )
                except UserError as error:
                    self._failure = error
                    return
                except RuntimeError as error:
                    if left == 0.0:
                        self._failure = HostMissing(f"the hosts could not agree where to stop: {error}")
                        return
                    time.sleep(_POLL_SECONDS)
                    continue
                if passed:
                    self._stop_at = max(map(int, passed)) + 1
                return
