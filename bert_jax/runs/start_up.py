"""Open what every host of a run needs: workdir, data set, vocabulary. Host 0 makes what is missing, all compare."""

import dataclasses
import hashlib
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

import bert_jax
from bert_jax.config import Config, flatten
from bert_jax.convert.continuing import save_vocabulary_of
from bert_jax.convert.source import Source
from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.pretrain.dataset import open_datasets, open_tokenizer
from bert_jax.runs.workdir import lock_workdir, open_workdir

_SHOWN_WITHIN = 60.0  # seconds; network disks and mounted buckets remember for up to a minute that a file is not there
_SEEN = ".seen-by-all-"
_OWN = ("data.directory", "data.num_workers")  # a data set may lie on each host's own disk


@dataclasses.dataclass(frozen=True)
class Opened:
    """Hold what was opened: the workdir (other runs are kept out of it), the data set of each length, the tokenizer."""

    path: Path
    datasets: dict[int, DatasetInfo]
    tokenizer: Tokenizer
    lock: IO[str] | None  # host 0's

    def close(self) -> None:
        """Let another run have the workdir."""
        if self.lock is not None:
            self.lock.close()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of vocabulary and data, by what messages call them."""
        infos = self.datasets.values()
        return {"vocabulary": next(iter(infos)).vocabulary_fingerprint} | {
            f"data of length {info.max_seq_length}": info.data_fingerprint for info in infos
        }


def check_command(config: Config, *, params: Any, hosts: Hosts) -> None:
    """Check that all hosts were given the same config and the same `params` to begin from, and run the same code.

    Raises:
      UserError: naming the host that differs.
    """
    if hosts.count == 1:
        return
    facts = {f"config.{name}": value for name, value in flatten(config).items() if name not in _OWN}
    facts |= {"code": code_digest(), "jax": jax.__version__, "the weights of --init": weights_digest(params)}
    hosts.check_same("config and code", facts)


def open_run(
    config: Config,
    *,
    workdir: str | Path,
    max_seq_lengths: tuple[int, ...],
    source: Source | None,
    hosts: Hosts,
    report: Callable[[str], None],
) -> Opened:
    """Open workdir, data set and vocabulary on every host; what does not exist yet is made on host 0 alone.

    Raises:
      UserError: for anything the user can mend; where hosts see other data, naming the host.
    """
    lock: IO[str] | None = None
    path = Path(workdir).absolute()
    with hosts.main_first("workdir"):
        if hosts.is_main:
            path = open_workdir(workdir, config=config)
            lock = lock_workdir(path)
            if source is not None:
                save_vocabulary_of(source, workdir=path)
    _check_shared(path, hosts=hosts)
    with hosts.main_first("data set"):
        datasets = open_datasets(
            config, workdir=path, max_seq_lengths=max_seq_lengths, build=hosts.is_main, report=report
        )
        tokenizer = open_tokenizer(next(iter(datasets.values())))
        if hosts.is_main:
            tokenizer.save(path / "vocab")  # for export; anew, as a run that came to no checkpoint may have had another
    opened = Opened(path, datasets, tokenizer, lock)
    hosts.check_same("vocabulary and data", {name: value[:12] for name, value in opened.fingerprints.items()})
    return opened


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


def _check_shared(path: Path, *, hosts: Hosts) -> None:
    """Check that all hosts see the same folder, by a file that host 0 makes there for the moment."""
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
