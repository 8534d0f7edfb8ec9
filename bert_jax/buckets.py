"""A folder in a bucket, gs://BUCKET/PATH: listed, downloaded, uploaded.

An object appears whole or not at all, but a folder of objects has no rename: whoever uploads one writes last the object
without which readers see nothing. fsspec, and the library of the store (gcsfs, extra `gcs`), are imported when a URL is
used, never for local paths.
"""

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.files import replacing
from bert_jax.progress import ByteProgress, clock, format_bytes

_THREADS = 8  # transfers at a time
_READ = 16 << 20
_SPARE_BYTES = 1 << 30  # left free on the disk of the cache
_QUIET = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # else gcsfs asks for every bucket's type, and warns


@dataclasses.dataclass(frozen=True)
class Object:
    """What the store says about an object; `md5` is "" where it has none (composite objects)."""

    size: int
    md5: str = ""

    def describes(self, file: Path) -> bool:
        """Return whether a local file has this content."""
        return file.is_file() and file.stat().st_size == self.size and (not self.md5 or self.md5 == _md5(file))


class BucketFolder:
    """The objects under a URL, by their names relative to it."""

    def __init__(self, url: str, *, name: str):
        """Connect; `name` is the flag or field that gave the URL, for errors.

        Raises:
          UserError: here and in all methods, for what the user can fix: a missing extra, no credentials, no bucket.
        """
        self.url, self._name = url.rstrip("/"), name
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        for library in ("fsspec", "gcsfs"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # a line per file, a traceback per retry
        with self._errors():
            import fsspec

            filesystem, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
            self._filesystem: Any = filesystem
            self._root = str(root).rstrip("/")

    def objects(self) -> dict[str, Object]:
        """Return all objects under the URL."""
        with self._errors(), clock(f"looking at {self.url}", report=_to_stderr):
            self._filesystem.invalidate_cache()
            listing = self._filesystem.find(self._root, detail=True)
        prefix = f"{self._root}/"
        return {
            path.removeprefix(prefix): Object(int(facts["size"]), str(facts.get("md5Hash") or ""))
            for path, facts in sorted(listing.items())
            if path.startswith(prefix) and not path.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        with self._errors():
            return self._filesystem.cat_file(f"{self._root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write an object, or replace it."""
        with self._errors():
            self._filesystem.pipe_file(f"{self._root}/{name}", content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of this name; return whether it was written. No two callers both do."""
        with self._errors():
            try:
                self._filesystem.pipe_file(f"{self._root}/{name}", content, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, name: str) -> None:
        """Delete an object, if it is there."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(f"{self._root}/{name}")

    def download(self, objects: Mapping[str, Object], *, to: Path, report: Callable[[str], None]) -> None:
        """Download objects to a local folder, each file whole or not at all; those that are there are kept.

        Another process that downloads to the same folder is waited for.
        """
        if not _absent(objects, to):
            return
        to.mkdir(parents=True, exist_ok=True)
        with _exclusive(to.with_name(f"{to.name}.lock"), report=report):
            missing = _absent(objects, to)
            num_bytes = sum(objects[name].size for name in missing)
            if not missing:
                return
            if shutil.disk_usage(to).free < num_bytes + _SPARE_BYTES:
                raise UserError(
                    f"{self._name}={self.url}: its {format_bytes(num_bytes)} do not fit on the disk of {to}: free disk "
                    "space, or set BERT_JAX_CACHE to a folder on a larger disk"
                )
            report(f"downloading {self.url} to {to}: {len(missing)} files, {format_bytes(num_bytes)}")
            self._transfer(
                lambda name, advance: self._download(name, objects[name], to / name, advance),
                {name: objects[name].size for name in missing},
                label="download",
                report=report,
            )

    def upload(self, folder: Path, *, last: Callable[[str], bool], report: Callable[[str], None]) -> None:
        """Upload a folder: first the files for which `last` is False, then the others, then compare with the listing.

        Objects that have the same content already are kept, so a second call finishes what a killed one began. Hidden
        files are not uploaded.
        """
        present, files = self.objects(), visible_files(folder)
        changed = [name for name, path in files.items() if name not in present or not present[name].describes(path)]
        num_bytes = sum(files[name].stat().st_size for name in changed)
        report(f"uploading to {self.url}: {len(changed)} files, {format_bytes(num_bytes)}")
        for names in ([n for n in changed if not last(n)], [n for n in changed if last(n)]):
            self._transfer(
                lambda name, advance: self._upload(files[name], name, advance),
                {name: files[name].stat().st_size for name in names},
                label="upload",
                report=report,
            )
        written = self.objects()
        wrong = [name for name, path in files.items() if name not in written or not written[name].describes(path)]
        if wrong:
            raise UserError(
                f"{self._name}={self.url}: the objects differ from what was uploaded ({', '.join(wrong[:5])}): does "
                "another command write there? Upload to another folder"
            )

    def _transfer(
        self,
        move: Callable[[str, Callable[[int], None]], None],
        sizes: Mapping[str, int],
        *,
        label: str,
        report: Callable[[str], None],
    ) -> None:
        progress = ByteProgress(label, total=sum(sizes.values()), report=report)
        pool = ThreadPoolExecutor(_THREADS)
        try:
            for done in [pool.submit(move, name, progress.advance) for name in sizes]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
            progress.finish()

    def _download(self, name: str, expected: Object, file: Path, advance: Callable[[int], None]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            with self._errors():
                self._filesystem.get_file(f"{self._root}/{name}", str(partial), callback=_callback(advance))
            if not expected.describes(partial):
                raise UserError(
                    f"{self._name}={self.url}: {name} arrived with other bytes than the bucket says it has: run the "
                    "same command again, and see that nothing writes there meanwhile"
                )

    def _upload(self, file: Path, name: str, advance: Callable[[int], None]) -> None:
        with self._errors():
            self._filesystem.put_file(str(file), f"{self._root}/{name}", callback=_callback(advance))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (UserError, FileExistsError):
            raise
        except Exception as error:  # each library of a store has its own kinds
            if reason := remedy_of(error):
                raise UserError(f"{self._name}={self.url}: {reason}") from error
            raise


def visible_files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder that are not hidden, by their names in a bucket."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {n.as_posix(): path for n, path in paths.items() if not any(part.startswith(".") for part in n.parts)}


def cache_folder(kind: str, *facts: str) -> Path:
    """Return the folder of this machine's cache for what `facts` identify; `kind` is "models" or "data"."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_jax"
    root = Path(os.environ.get("BERT_JAX_CACHE") or default).absolute()
    return root / kind / hashlib.sha256("\0".join(facts).encode()).hexdigest()[:20]


def remedy_of(error: Exception) -> str:
    """Return what is wrong with a store or the way to it and what to type, "" for an error of another kind."""
    library, text = type(error).__module__.partition(".")[0], " ".join(str(error).split())[:200]
    if isinstance(error, ImportError):
        return "needs gcsfs: pip install 'bert_jax[gcs]'"
    if "credentials" in text or "Anonymous caller" in text or getattr(error, "code", 0) == 401:
        return "no credentials for this bucket: type gcloud auth application-default login"
    if isinstance(error, PermissionError) or text.startswith("Forbidden") or getattr(error, "code", 0) == 403:
        return f"no permission ({text}): give this account the role Storage Object User of the bucket"
    if (isinstance(error, FileNotFoundError) and error.errno is None) or getattr(error, "code", 0) == 404:
        return "there is no such bucket or object: see what is there with gcloud storage ls"
    if library in ("aiohttp", "google", "gcsfs", "requests") or isinstance(error, TimeoutError):
        return f"the store cannot be reached or refused ({type(error).__name__}: {text}): try again later"
    return f"the store refused ({text})" if isinstance(error, OSError) and error.errno is None else ""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _absent(objects: Mapping[str, Object], folder: Path) -> list[str]:
    """Return the objects without a file of their size: a file is renamed to its name after its checksum is compared."""
    paths = {name: folder / name for name in objects}
    return [n for n, path in paths.items() if not path.is_file() or path.stat().st_size != objects[n].size]


@contextlib.contextmanager
def _exclusive(file: Path, *, report: Callable[[str], None]) -> Iterator[None]:
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process, which downloads the same")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while content := stream.read(_READ):
            digest.update(content)
    return base64.b64encode(digest.digest()).decode()


def _callback(advance: Callable[[int], None]) -> Any:
    import fsspec

    done = 0

    def count(size: int | None, value: int, **_: object) -> None:
        nonlocal done
        del size
        advance(value - done)
        done = value

    return fsspec.callbacks.Callback(hooks={"count": count})
