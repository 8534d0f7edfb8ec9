"""Limits of the process that jax does not survive."""

import os
import resource

from bert_jax.errors import UserError
from bert_jax.progress import format_bytes

_BYTES, _BYTES_PER_CORE = 2_500_000_000, 100_000_000  # what a tiny model reserved on two cores, and a thread's stacks


def check_address_space() -> None:
    """Check the limit on address space: below it, jax aborts, or waits forever for threads that did not start.

    Raises:
      UserError: if it is too small.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = _BYTES + _BYTES_PER_CORE * (os.cpu_count() or 1)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"memory is short: the limit on address space (ulimit -v) is {format_bytes(limit)}, and jax needs at least "
            f"{format_bytes(needed)} on this machine: type `ulimit -v unlimited`, or ask for more memory"
        )
