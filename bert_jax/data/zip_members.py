"""The members of a zip archive as streams."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the latter starts an empty archive
ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError)  # RuntimeError: a password is necessary


def zip_members(stream: Any, *, path: str) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the name and the content of each file in an archive; hidden files and those of macOS are skipped.

    The directory of an archive is at its end: without a `path`, as for an archive within another, the stream is copied
    to disk first.

    Raises:
      one of `ERRORS`: if the archive is damaged, encrypted, or compressed by a method that Python lacks.
    """
    with tempfile.TemporaryFile() as copy:
        if not path:
            shutil.copyfileobj(stream, copy, 1 << 20)
        with zipfile.ZipFile(path or copy) as archive:
            for member in archive.infolist():
                parts = member.filename.split("/")
                if (
                    member.is_dir()
                    or parts[0] == "__MACOSX"
                    or any(part.startswith(".") and part != "." for part in parts)
                ):
                    continue
                with archive.open(member) as content:
                    yield member.filename.removeprefix("./"), content  # type: ignore[misc]
