"""Start-up of a training command: hosts compare what they run, open the workdir, and check that they share it."""

import hashlib
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

import bert_jax
from bert_jax.config import flatten
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts, check_all_joined
from bert_jax.runs.bucket_workdir import BucketWorkdir
from bert_jax.runs.compilation_cache import CompilationCache
from bert_jax.runs.page_writer import PageWriter
from bert_jax.runs.runtime import Runtime, silent
from bert_jax.runs.workdir import SameRun, open_workdir

_SHOWN_WITHIN = 60.0  # seconds; network disks and mounted buckets may show a new file only after a minute
_SEEN = ".seen-by-all-"


def check_command(
    config: Any, *, params: Any, hosts: Hosts, own: Iterable[str] = (), others: Mapping[str, str] | None = None
) -> None:
    """Check that all hosts have the same config, the same initial `params`, the same code and the same `others`.

    Fields named in `own` may differ: a data set may be on each host's local disk.

    Raises:
      UserError: naming the host that differs, or if some hosts of the accelerator did not start.
    """
    check_all_joined(hosts)
    if hosts.count == 1:
        return
    facts = {f"config.{name}": value for name, value in flatten(config).items() if name not in own}
    facts |= {"code": code_digest(), "jax": jax.__version__, "the weights of --init": weights_digest(params)}
    facts |= others or {}
    hosts.check_same("config and code", facts)


def open_runtime(
    config: Any,
    *,
    workdir: str | Path,
    same_run: SameRun,
    hosts: Hosts,
    prepare: Callable[[Path], None] | None = None,
    command: str = "",
    started_at: float | None = None,
    bucket: BucketWorkdir | None = None,
) -> Runtime:
    """Open the workdir on every host. Host 0 creates and locks it, and runs `prepare` in it.

    Of a workdir in a `bucket`, `workdir` is the copy of this machine, and every host does.

    Raises:
      UserError: for anything the user can fix.
    """
    lock: IO[str] | None = None
    path = Path(workdir).absolute()
    is_new = hosts.is_main and not path.exists()
    with hosts.main_first("workdir"):
        if hosts.is_main or bucket is not None:
            lock = open_workdir(workdir, config=config, same_run=same_run)
            if prepare is not None:
                prepare(path)
    if bucket is None:
        check_shared(path, hosts=hosts)
    report = print if hosts.is_main else silent
    return Runtime(
        path,
        hosts,
        CompilationCache(path),
        lock,
        report=report,
        pages=PageWriter(enabled=config.log.report, report=report) if hosts.is_main else None,
        command=command,
        started_at=started_at or time.time(),
        is_new=is_new,
        bucket=bucket,
    )


def code_digest() -> str:
    """Return a digest of the package's source code."""
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
    """Check that all hosts see the same folder, with a temporary file of host 0.

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
        # A host that waits for the file reports late.
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
                f"{file.parent}: --workdir must be a folder shared by all hosts (a network disk, or a bucket mounted "
                "at the same path)"
            )
        time.sleep(1.0)
