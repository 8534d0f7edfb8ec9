"""The members of a zip archive as streams."""

import contextlib
import io
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from bert_jax.errors import UserError
from bert_jax.files import open_regular

MAGICS = (b"PK\x03\x04", b"PK\x05\x06")  # the latter starts an empty archive
# RuntimeError: a password is necessary. ValueError: a name that is not UTF-8, a negative offset.
ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError, struct.error)
_MAX_READ = 64 << 20  # bytes of an archive's directory, which zipfile holds in memory, 12 times as large at worst
_MAX_COPY = 8 << 30  # bytes of an archive within another, which is copied to disk
_MAX_DICTIONARY = 512 << 20  # of LZMA; a member may ask for 4 GB
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of name and extra field; the data follow


class _Source(io.BufferedReader):
    """An archive whose directory has a limit: zipfile reads it in one go, and everything else in small parts."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes."""
        left = os.fstat(self.fileno()).st_size - self.tell()  # a directory may claim to be larger than its file
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_READ:
            raise zipfile.BadZipFile(f"a directory of {size} bytes: unpack it, or split it")
        return super().read(size)


def zip_members(stream: Any, *, path: str) -> Iterator[tuple[str, BinaryIO]]:
    """Yield the name and the content of each file in an archive; hidden files and those of macOS are skipped.

    The directory of an archive is at its end: without a `path`, as for an archive within another, the stream is copied
    to disk first.

    Raises:
      UserError: if it cannot be copied.
      one of `ERRORS`: if the archive is damaged, encrypted, or compressed by a method that Python lacks.
    """
    raw = open_regular(path).detach() if path else _copied(stream)  # type: ignore[union-attr]
    with _Source(raw) as source, zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            parts = member.filename.split("/")
            if (
                member.filename.endswith("/")
                or parts[0] == "__MACOSX"
                or any(part.startswith(".") and part != "." for part in parts)
            ):
                continue
            if member.compress_type == zipfile.ZIP_LZMA:
                _check_dictionary(source, member)
            with archive.open(member) as content:
                yield member.filename.removeprefix("./"), content  # type: ignore[misc]


def _copied(stream: Any) -> io.RawIOBase:
    """Return a temporary file with the content of a stream."""
    with contextlib.ExitStack() as closing:
        try:
            file = closing.enter_context(tempfile.TemporaryFile(buffering=0))
            size = 0
            while block := stream.read(1 << 20):
                size += len(block)
                if size > _MAX_COPY:
                    raise UserError(
                        f"{stream.name} is a zip archive of more than {_MAX_COPY >> 30} GiB: unpack it first"
                    )
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
        except OSError as error:  # of the copy: the stream's own errors are UserErrors
            raise UserError(
                f"{stream.name} cannot be copied to {tempfile.gettempdir()} ({error.strerror or error}): free disk "
                "space there, set TMPDIR to another folder, or unpack it first"
            ) from None
        closing.pop_all()
    return file


def _check_dictionary(source: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Check the memory that a member asks for: a dictionary's size follows the first of its five properties."""
    source.seek(member.header_offset)
    with contextlib.suppress(struct.error):  # cut short, which reading reports
        name, extra = _LOCAL_HEADER.unpack(source.read(_LOCAL_HEADER.size))
        source.seek(name + extra, io.SEEK_CUR)
        (size,) = struct.unpack("<5xI", source.read(9))
        if size > _MAX_DICTIONARY:
            raise zipfile.BadZipFile(f"a dictionary of {size} bytes in {member.filename[:100]!r}: unpack it")
