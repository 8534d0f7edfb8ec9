"""The private names of jax and Orbax that the package uses, in one file.

Any release may move or change them. `tests/test_jax_internals.py` detects that, and each function says what happens
without the name. jax is imported inside functions: reading flags does not need it, and a missing name is an error only
for the caller that needs it.
"""

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError

# Loggers whose INFO lines would bury the run's own log lines.
LOGGERS = {
    "devices": "jax._src.xla_bridge",  # the kinds of accelerators that are absent
    "hosts": "jax._src.distributed",  # an address per line, on every host
    "compilation cache": "jax._src.compilation_cache",
}
# The name that stops libtpu from asking for hosts. It says nothing about the hosts of a run.
QUIET_HOSTNAME = "127.0.0.1"
# On a TPU VM, libtpu gets these from a metadata server; elsewhere it prints pages of warnings without them.
_WITHOUT_METADATA = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": QUIET_HOSTNAME,
}
# Orbax's suffix for a checkpoint that is being written.
UNFINISHED_CHECKPOINT = ".orbax-checkpoint-tmp"
COMMITTED_CHECKPOINT = "commit_success.txt"  # Orbax writes it last into a checkpoint in a bucket
_ORBAX_READ = "_read_array_index_and_device_put"  # the coroutine that reads one array


class MissingName(UserError):
    """A private name that this version of jax does not have."""


def quiet(subject: str) -> None:
    """Limit one of `LOGGERS` to warnings; if jax renames its module, its INFO lines are printed again."""
    logging.getLogger(LOGGERS[subject]).setLevel(logging.WARNING)


def quiet_libtpu() -> None:
    """Set what libtpu would warn of on a machine without TPUs; what is set already stays."""
    for name, value in _WITHOUT_METADATA.items():
        os.environ.setdefault(name, value)


def has_tpu_devices() -> bool:
    """Return whether this machine has a device that libtpu could open."""
    return any(True for pattern in ("accel*", "vfio/[0-9]*") for _ in Path("/dev").glob(pattern))


def has_useless_libtpu() -> bool:
    """Return whether libtpu is installed, as for `plan`, and there is no device for it."""
    return importlib.util.find_spec("libtpu") is not None and not has_tpu_devices()


def key_value_client() -> Any:
    """Return the client of the key-value store that hosts exchange messages in; None before `jax.distributed` starts.

    Raises:
      MissingName: if jax has moved it; only single-host runs work then.
    """
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError):
        raise MissingName(
            f"jax {_jax_version()} has moved its key-value store, which runs on several hosts need: "
            "install jax 0.10.2, or run on one host"
        ) from None


def detect_hosts(*, seconds: float) -> tuple[str | None, int | None, int | None, Any]:
    """Return the first host's address, the number of hosts, this host's number and its devices, as jax detects them.

    A value that jax does not detect is None. jax itself detects hosts only inside `jax.distributed.initialize`, which
    aborts the process if a host is missing. `seconds` is the time limit of each request.

    Raises:
      MissingName: if jax has moved the function; environment variables must name the hosts then.
      Exception: any error of a request to a metadata server.
    """
    try:
        from jax._src import clusters

        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        raise MissingName(
            f"jax {_jax_version()} has moved its detection of hosts: set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID on every host, or install jax 0.10.2"
        ) from None
    return detect(None, None, None, None, None, round(seconds))


def share_programs_between_cpu_hosts() -> bool:
    """Make CPU hosts read the compiled programs that the first host cached; return False if this jax cannot.

    The cache key of a program includes the topology, and a CPU topology says which devices are local, so without this
    every host compiles the same program again. TPUs have one topology for all hosts.
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
    """Return whether an unraisable error is from a read that Orbax abandoned; if Orbax renames it, False."""
    return _ORBAX_READ in repr(event.object) or str(event.exc_value) == "Event loop is closed"


def is_of_orbax_task(record: logging.LogRecord) -> bool:
    """Return whether asyncio logs an error of a task that Orbax defined and abandoned."""
    return "/orbax/checkpoint/" in record.getMessage()


def _jax_version() -> str:
    import jax

    return jax.__version__


def complete_steps(names: Iterable[str], *, is_copy: bool = False) -> list[int]:
    """Return the steps with a complete checkpoint among the files of a workdir in a bucket, in ascending order.

    Orbax marks them. With `is_copy`, all are complete if none is marked: versions before 0.12 mark none in a local
    workdir, which may have been copied to the bucket.
    """
    parts = [name.split("/", 2) for name in names if re.fullmatch(r"checkpoints/\d+/.+", name)]
    marked = {int(step) for _, step, rest in parts if rest == COMMITTED_CHECKPOINT}
    return sorted(marked or {int(step) for _, step, _ in parts if is_copy})
