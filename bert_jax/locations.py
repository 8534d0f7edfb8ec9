"""The folders and files that a user names: local ones. To support a URL such as gs://, begin here.

A URL as an output would make a local folder called `gs:`, so every command refuses one before any work.
"""

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path

from bert_jax.errors import UserError

_URL = re.compile(r"(?:^|,)\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_WAYS = {
    "file": "type the path itself, without file://",
    "http": "download it, and name the copy",
    "https": "download it, and name the copy",
}
_BUCKET = "mount the bucket as a folder (for example with gcsfuse), or copy its files, and name that folder"


def refuse_url(value: str, *, name: str) -> None:
    """Check that a path, or a list of paths separated by commas, has no URL; `name` is its flag or field.

    `tfds:NAME` is not a URL.

    Raises:
      UserError: naming the way to reach the files without one.
    """
    match = _URL.search(value)
    if match is not None:
        raise UserError(f"{name}={value[:200]}: URLs are not supported: {_WAYS.get(match[1].lower(), _BUCKET)}")


def refuse_urls(values: Iterable[tuple[str, object]]) -> None:
    """Check flags or fields, each with its name; values that are not strings or lists of strings are skipped.

    Raises:
      UserError: as `refuse_url`.
    """
    for name, value in values:
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, str):
                refuse_url(item, name=name)


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
