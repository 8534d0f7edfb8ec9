"""Start a command that trains: hosts agree on what they run, host 0 opens the workdir, all see the same folder."""

import hashlib
import time
import uuid
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

import bert_jax
from bert_jax.config import flatten
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts, check_all_joined
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.runtime import Runtime, silent
from bert_jax.runs.workdir import SameRun, open_workdir

_SHOWN_WITHIN = 60.0  # seconds; network disks and mounted buckets remember for up to a minute that a file is not there
_SEEN = ".seen-by-all-"


def check_command(config: Any, *, params: Any, hosts: Hosts, own: Iterable[str] = ()) -> None:
    """Check that all hosts were given the same config and the same `params` to begin from, and run the same code.

    Fields named in `own` may differ: a data set may lie on each host's own disk.

    Raises:
      UserError: naming the host that differs, or if the accelerator has hosts that did not start.
    """
    check_all_joined(hosts)
    if hosts.count == 1:
        return
    facts = {f"config.{name}": value for name, value in flatten(config).items() if name not in own}
    facts |= {"code": code_digest(), "jax": jax.__version__, "the weights of --init": weights_digest(params)}
    hosts.check_same("config and code", facts)


def open_runtime(
    config: Any,
    *,
    workdir: str | Path,
    same_run: SameRun,
    hosts: Hosts,
    prepare: Callable[[Path], None] | None = None,
    command: str = "the same command",
    begun: float | None = None,
) -> Runtime:
    """Open the workdir on every host; host 0 makes it, locks it and lets `prepare` write what all are to find there.

    Raises:
      UserError: for anything the user can fix.
    """
    lock: IO[str] | None = None
    path = Path(workdir).absolute()
    with hosts.main_first("workdir"):
        if hosts.is_main:
            lock = open_workdir(workdir, config=config, same_run=same_run)
            if prepare is not None:
                prepare(path)
    check_shared(path, hosts=hosts)
    return Runtime(
        path,
        hosts,
        CompilationCache(path),
        lock,
        report=print if hosts.is_main else silent,
        command=command,
        begun=begun or time.time(),
    )


def code_digest() -> str:
    """Return a digest of the package's sources."""
    root = Path(bert_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def weights_digest(params: Any) -> str:
    """Return a digest of a tree of arrays in host memory; "" for None."""
    total = 0
    for leaf in jax.tree.leaves(params):
        total = zlib.crc32(np.ascontiguousarray(leaf).data.cast("B"), total)
    return "" if params is None else f"{total:08x}"


def check_shared(path: Path, *, hosts: Hosts) -> None:
    """Check that all hosts see the same folder, by a file that host 0 makes there for the moment.

    Raises:
      UserError: naming the host that does not see it.
    """
    if hosts.count == 1:
        return
    name = f"{_SEEN}{uuid.uuid4().hex}" if hosts.is_main else ""
    try:
        if hosts.is_main:
            (path / name).touch()
        _look_for(path / hosts.exchange("file in the workdir", name)[0], hosts=hosts)
        # Whoever waits for the file tells of it late.
        hosts.exchange("workdir seen by all", seconds=hosts.seconds + _SHOWN_WITHIN)
    finally:
        if hosts.is_main:
            for left in path.glob(f"{_SEEN}*"):
                left.unlink(missing_ok=True)


def _look_for(file: Path, *, hosts: Hosts) -> None:
    deadline = time.monotonic() + _SHOWN_WITHIN
    while not file.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{hosts.name(hosts.index)} does not see the file {file.name} that {hosts.name(0)} wrote to "
                f"{file.parent}: --workdir must be a folder that all hosts share (a network disk, or a bucket mounted "
                "at the same path)"
            )
        time.sleep(1.0)
