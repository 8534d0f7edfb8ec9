"""The new folder of an export: on this machine, or in a bucket."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bert_jax.buckets import BucketFolder
from bert_jax.errors import UserError
from bert_jax.files import new_folder, writing
from bert_jax.locations import is_bucket, local_path

_LAST = "config.json"  # without it, neither we nor transformers see a model


@dataclasses.dataclass(frozen=True)
class Destination:
    """A folder to fill, and what becomes of it: its path or URL, and the last part of that."""

    folder: Path
    final: Path | str
    name: str


@contextlib.contextmanager
def destination(out: str | Path, *, report: Callable[[str], None]) -> Iterator[Destination]:
    """Yield an empty folder to fill. It is renamed to `out`, or uploaded there, if the body succeeds.

    Raises:
      UserError: if `out` is not empty or cannot be written.
    """
    if is_bucket(out):
        with _uploaded(str(out), report=report) as target:
            yield target
        return
    final = local_path(out, name="--out", expand=True).absolute()
    if final.exists() and not final.is_dir():
        raise UserError(f"--out={out}: this is not a folder: name a new folder")
    if final.exists() and any(final.iterdir()):
        raise UserError(f"--out={out}: this folder exists and is not empty: name a new folder, or remove it")
    with writing(f"--out={out}:", remedy="name another folder, or free disk space and check the permissions"):
        final.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(final) as folder:
            yield Destination(folder, final, final.name)


@contextlib.contextmanager
def _uploaded(url: str, *, report: Callable[[str], None]) -> Iterator[Destination]:
    bucket = BucketFolder(url, name="--out")
    if bucket.objects():
        raise UserError(
            f"--out={url}: this folder exists and is not empty: name a new folder, or remove it with gcloud storage rm "
            f"-r {bucket.url}"
        )
    with tempfile.TemporaryDirectory(prefix="bert_jax_export_") as name:
        folder = Path(name)
        with writing(f"--out={url}: {folder}", remedy="free disk space, or set TMPDIR to a folder on a larger disk"):
            yield Destination(folder, bucket.url, bucket.url.rpartition("/")[2])
        try:
            bucket.upload(folder, last=lambda name: name == _LAST, report=report)
        except BaseException:
            with contextlib.suppress(UserError):
                for path in folder.rglob("*"):
                    bucket.remove(path.relative_to(folder).as_posix())
            raise
