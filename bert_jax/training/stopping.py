"""Turn Ctrl-C and SIGTERM into a request to stop at the next step boundary."""

import os
import signal
import types


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
            signal.signal(number, handler)  # type: ignore[arg-type]

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
