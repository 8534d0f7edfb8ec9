"""Data sets in buckets (gs://): read from this machine's cache, built on this machine and uploaded.

Records are read one at a time, in random order, so shards are downloaded whole before they are used. The cache's folder
is named after the URL and the data set's fingerprint: another data set at the same URL has another folder.
"""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_jax.buckets import BucketFolder, Object, cache_folder, visible_files
from bert_jax.data.shards import DATASET_NAME, INFO_FILE, METADATA_FILE, VERSION
from bert_jax.errors import UserError
from bert_jax.json_files import parse_object

_SHARD = ".array_record-"
_MANIFEST = "manifest.json"
_SEEDED = ".from_bucket"  # in a build's folder: it has facts of shards that are only in the bucket


@functools.cache
def _opened(url: str) -> tuple[BucketFolder, dict[str, Object]]:
    """Return a bucket's folder and its objects: a finished data set does not change."""
    bucket = BucketFolder(url, name="config.data.directory")
    return bucket, bucket.objects()


def forget() -> None:
    """Look again at what buckets contain."""
    _opened.cache_clear()


def lengths_in_bucket(url: str) -> list[int]:
    """Return the lengths at which the data set at a URL is complete."""
    _, objects = _opened(url)
    parts = [name.split("/") for name in objects if name.endswith(f"/{VERSION}/{INFO_FILE}")]
    return sorted(int(part[1].removeprefix("len")) for part in parts if part[0] == DATASET_NAME and len(part) == 4)


def facts_folder(url: str, *, max_seq_length: int) -> Path:
    """Return the cache's folder of the data set at a URL, with all of it at a length but its shards.

    Raises:
      UserError: if it cannot be downloaded.
    """
    bucket, objects = _opened(url)
    prefix = _prefix(max_seq_length)
    try:
        fingerprint = str(parse_object(bucket.read(f"{prefix}{METADATA_FILE}"))["data_fingerprint"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{url}/{prefix}{METADATA_FILE} is damaged ({error}): run prepare again") from None
    folder = _cached(url, fingerprint)
    small = {
        name: value for name, value in objects.items() if name.startswith(("vocab/", prefix)) and _SHARD not in name
    }
    bucket.download(small, to=folder, report=lambda line: None)
    return folder


def download_shards(url: str, folder: Path, *, max_seq_length: int, report: Callable[[str], None]) -> None:
    """Download what is missing of the shards of a length to the folder of `facts_folder`.

    Raises:
      UserError: if they cannot be downloaded.
    """
    bucket, objects = _opened(url)
    prefix = _prefix(max_seq_length)
    shards = {name: value for name, value in objects.items() if name.startswith(prefix) and _SHARD in name}
    bucket.download(shards, to=folder, report=report)


def build_in_bucket(url: str, *, build: Callable[[Path], Any], report: Callable[[str], None]) -> Any:
    """Return the result of `build`, which gets a folder of this machine; the data set in it is uploaded to `url`.

    A killed build or upload is resumed by the same call. As in a local folder, a call with another length adds it, and
    one with other text or settings is refused. The built folder becomes the cache's: training here downloads nothing.

    Raises:
      UserError: as `build`; if the bucket cannot be written, or has other objects.
    """
    bucket = BucketFolder(url, name="--out")
    objects, folder = bucket.objects(), cache_folder("builds", bucket.url)
    is_resumed = _MANIFEST in objects
    if objects and not is_resumed:
        raise UserError(f"--out={url}: was not made by prepare: choose another --out, or move it away")
    if not is_resumed and (folder / _SEEDED).exists():
        shutil.rmtree(folder)
    report(f"building {bucket.url} in {folder}")
    if is_resumed and not (folder / _MANIFEST).exists():
        _seed(bucket, objects, folder=folder)
    try:
        result = build(folder)
    except UserError as error:
        text = str(error)
        raise UserError(text.replace(str(folder), bucket.url) if is_resumed else text) from error
    manifest = (folder / _MANIFEST).read_bytes()
    if not bucket.create(_MANIFEST, manifest) and bucket.read(_MANIFEST) != manifest:
        raise UserError(f"--out={url}: has another data set, made meanwhile: choose another --out")
    bucket.upload(folder, last=lambda name: name.endswith(INFO_FILE), report=report)
    _move_to_cache(folder, _cached(bucket.url, result.data_fingerprint))
    return result


def _seed(bucket: BucketFolder, objects: dict[str, Object], *, folder: Path) -> None:
    """Download all but the shards, which a build with the same settings does not read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SEEDED).touch()
    small = {name: value for name, value in objects.items() if _SHARD not in name}
    last = {_MANIFEST: small.pop(_MANIFEST)}
    for part in (small, last):
        bucket.download(part, to=folder, report=lambda line: None)


def _move_to_cache(folder: Path, cached: Path) -> None:
    for name, path in visible_files(folder).items():
        target = cached / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    shutil.rmtree(folder)


def _cached(url: str, fingerprint: str) -> Path:
    return cache_folder("data", url.rstrip("/"), fingerprint)


def _prefix(max_seq_length: int) -> str:
    return f"{DATASET_NAME}/len{max_seq_length}/{VERSION}/"
