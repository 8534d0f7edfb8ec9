"""Profile selected steps (view WORKDIR/profile with TensorBoard's profile plugin or Perfetto)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class StepTracer:
    """Wrapper of `train_step` that traces steps FIRST to END - 1."""

    def __init__(self, train_step: Callable[[int], Callable[..., Any]], *, steps: str, directory: str | Path):
        """Trace the steps "FIRST:END", none if empty."""
        self._train_step = train_step
        first, _, end = steps.partition(":")
        self._first, self._end = (int(first), int(end)) if steps else (-1, -1)
        self._directory = str(directory)
        self._tracing = False

    def __call__(self, step: int) -> Callable[..., Any]:
        """Return the step function for `step`."""
        function = self._train_step(step)
        return self._traced(function, step) if self._first <= step < self._end else function

    def close(self) -> None:
        """Write the trace if the run ends within the traced steps."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def _traced(self, function: Callable[..., Any], step: int) -> Callable[..., Any]:
        def call(state: Any, rows: Any) -> Any:
            if not self._tracing:  # not only at `first`: a run may resume within the traced steps
                jax.block_until_ready(state)
                jax.profiler.start_trace(self._directory)
                self._tracing = True
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                result = function(state, rows)
            if step == self._end - 1:
                jax.block_until_ready(result)
                self.close()
            return result

        return call
