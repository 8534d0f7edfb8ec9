"""The folders and files that a user names: local ones, and where a flag says so a folder in a bucket (gs://).

Any other URL as an output would make a local folder called `s3:`, so every command refuses one before any work.
"""

import errno
import os
import re
from collections.abc import Container, Iterable
from pathlib import Path

from bert_jax.errors import UserError

# As typed, and with slashes forgotten: `s3:/bucket`, and `gs:bucket` for what cannot be the name of a file by chance.
_URL = re.compile(r"(?:^|,)\s*(?:([a-z][a-z0-9+.-]*)://|([a-z][a-z0-9+.-]+):/|(gs|s3|hdfs|https?):)", re.IGNORECASE)
_WAYS = {
    "file": "type the path itself, without file://",
    "http": "download it, and name the copy",
    "https": "download it, and name the copy",
}
_MOUNT = "mount the bucket as a folder (for example with gcsfuse), or copy its files, and name that folder"


BUCKET = "gs://"
_BUCKET_URL = re.compile(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9]((/[^/*?\[\]#\s\x00-\x1f]+)+)/?")


def is_bucket(value: str | os.PathLike) -> bool:
    """Return whether a path is a folder in a bucket: `bert_jax.buckets` reads and writes it."""
    return os.fspath(value).startswith(BUCKET)


def refuse_url(value: str, *, name: str, buckets: bool = False) -> None:
    """Check that a path, or a list of paths separated by commas, has no URL; `name` is its flag or field.

    `tfds:NAME` is not a URL. With `buckets`, one folder in a bucket is allowed.

    Raises:
      UserError: naming the way to reach the files without one.
    """
    if buckets and is_bucket(value):
        match = _BUCKET_URL.fullmatch(value)
        if match is None or {".", ".."} & set(match[1].split("/")):
            raise UserError(
                f"{name}={value[:200]}: write gs://BUCKET/FOLDER: a bucket has three or more lower-case letters, "
                "digits, '.', '_' or '-', a folder no spaces and wildcards"
            )
        return
    match = _URL.search(value)
    if match is not None:
        scheme = next(filter(None, match.groups())).lower()
        if buckets and scheme == "gs":
            raise UserError(f"{name}={value[:200]}: write gs://BUCKET/FOLDER, with two slashes and in lower case")
        kinds = f"URLs are not supported, except {BUCKET}" if buckets else "URLs are not supported"
        raise UserError(f"{name}={value[:200]}: {kinds}: {_WAYS.get(scheme, _MOUNT)}")


def refuse_urls(values: Iterable[tuple[str, object]], *, buckets: Container[str] = ()) -> None:
    """Check flags or fields, each with its name; values that are not strings or lists of strings are skipped.

    Those named in `buckets` may be a folder in a bucket.

    Raises:
      UserError: as `refuse_url`.
    """
    for name, value in values:
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, str):
                refuse_url(item, name=name, buckets=name in buckets)


def local_path(value: str | os.PathLike, *, name: str, example: str = "a folder", expand: bool = False) -> Path:
    """Return the path of a file or folder that a user names with `name`, for example "--out".

    With `expand`, a `~` at its start is the home folder.

    Raises:
      UserError: if it is empty, a URL, or cannot be a path of this system.
    """
    text = os.fspath(value)
    if not text.strip():
        raise UserError(f"{name} is empty: name {example}")
    refuse_url(text, name=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}={text!a:.200}: its bytes are not UTF-8: rename it, or name another") from None
    try:
        os.lstat(text)
    except ValueError as error:
        raise UserError(f"{name}={text[:200]}: is not a path here ({error}): name {example}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # what else is wrong is reported where the path is used
            raise UserError(f"{name}={text[:200]}: is not a path here ({error.strerror}): name {example}") from None
    return Path(os.path.expanduser(text) if expand else text)  # noqa: PTH111  Path.expanduser raises for a user


def output_file(value: str, *, name: str, pipes: bool = False) -> Path:
    """Return the path of a file to write, which `name`, for example "--out", names. Nothing is written.

    Raises:
      UserError: if it is a folder, its folder does not exist or is read-only, or, without `pipes`, it is a pipe or a
        device: a file that is written whole replaces what was there.
    """
    file = local_path(value, name=name, example="a file")
    folder = file.absolute().parent
    if file.is_dir():
        raise UserError(f"{name}={value}: this is a folder: name a file in it")
    if file.exists() and not file.is_file():
        if pipes:
            return file
        raise UserError(f"{name}={value}: this is a pipe or a device: name a file")
    if not folder.is_dir():
        raise UserError(f"{name}={value}: cannot be written (there is no folder {folder}): make it first")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{name}={value}: cannot be written ({folder} is read-only): name another file")
    return file
