"""What jax and Orbax do not offer publicly: their private names are used here and nowhere else.

Any release may move or change them. `tests/test_jax_internals.py` notices it, and each function says what the package
does without. jax is imported inside functions: reading a flag needs none of it, and a name that is missing is reported
by what needs it.
"""

import logging
import sys
from typing import Any

from bert_jax.errors import UserError

# Who writes information that would bury a run's own lines.
LOGGERS = {
    "devices": "jax._src.xla_bridge",  # the kinds of accelerator that it did not find
    "hosts": "jax._src.distributed",  # an address per line, on every host
    "compilation cache": "jax._src.compilation_cache",
}
# What Orbax adds to the name of a checkpoint that it is writing.
UNFINISHED_CHECKPOINT = ".orbax-checkpoint-tmp"
_ORBAX_READ = "_read_array_index_and_device_put"  # the coroutine that reads one array


class MissingName(UserError):
    """A private name that this version of jax does not have."""


def quiet(subject: str) -> None:
    """Print only warnings about one of `LOGGERS`; where jax renames its module, its lines are printed."""
    logging.getLogger(LOGGERS[subject]).setLevel(logging.WARNING)


def key_value_client() -> Any:
    """Return the client of the key-value store by which hosts exchange messages, None before `jax.distributed` starts.

    Raises:
      MissingName: without it; several hosts cannot run together then.
    """
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError):
        raise MissingName(
            f"jax {_jax_version()} has no key-value store where this package looks for it: install jax 0.10.2, or run "
            "on one host"
        ) from None


def detect_hosts(*, seconds: float) -> tuple[str | None, int | None, int | None, Any]:
    """Return the first host's address, the number of hosts, this one's number and its devices, as jax finds them.

    jax itself looks only inside `jax.distributed.initialize`, which aborts the process where a host is missing. What is
    not found is None. `seconds` is the time limit for asking.

    Raises:
      MissingName: without it; the hosts must be named by environment variables then.
      Exception: whatever a metadata server makes the request raise.
    """
    try:
        from jax._src import clusters

        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        raise MissingName(
            f"jax {_jax_version()} has no search for hosts where this package looks for it: set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID on every host, or install jax 0.10.2"
        ) from None
    return detect(None, None, None, None, None, round(seconds))


def share_programs_between_cpu_hosts() -> bool:
    """Let CPU hosts find the compiled programs that the first one wrote; return False if this jax cannot.

    A CPU's topology, which is part of a program's key, says which devices are local; without this, every host compiles
    for itself. The program is the same on all. TPUs have one topology for all hosts.
    """
    try:
        from jax._src import cache_key
    except ImportError:
        return False
    if not hasattr(cache_key, "_hash_accelerator_config") or not hasattr(cache_key, "_hash_devices"):
        return False
    cache_key._hash_accelerator_config = cache_key._hash_devices
    return True


def is_abandoned_read(event: "sys.UnraisableHookArgs") -> bool:
    """Return whether an unraisable error is of a read that Orbax gave up; without the name its traceback is printed."""
    return _ORBAX_READ in repr(event.object) or str(event.exc_value) == "Event loop is closed"


def _jax_version() -> str:
    import jax

    return jax.__version__
