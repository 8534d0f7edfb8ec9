"""Open a file as a stream of text, or an archive as one stream per member, decompressed."""

import bz2
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

import zstandard

from bert_jax.data import zip_members
from bert_jax.data.file_types import why_not_text
from bert_jax.errors import UserError
from bert_jax.files import open_regular

MAX_LEVELS = 6  # compressions and archives inside each other, as in a .tar.gz of .zst files: four
_MAX_XZ_MEMORY = 512 << 20  # eight times that of `xz -9`; a header may ask for 4 GB
_MAX_TAR_HEADER = 1 << 20  # bytes of a long name or of extended attributes; a header may ask for 8 GB
_MAX_GLOBAL_ATTRIBUTES = 1000
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # pi: first block; sqrt(pi): end of an empty file
_ZSTD_OUTPUT = 1 << 20  # bytes that one call of the zstd decoder should produce
_ZSTD_INPUT = 1 << 9  # bytes per call at most: a block of 4 bytes may produce 128 KiB, so these 16 MiB
_ZSTD = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # any setting of `zstd --long`


class Readable(Protocol):
    """The interface of a file for decompressors and archives."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, empty at the end."""
        ...


class ByteStream:
    """A stream with `peek`, whose reads are short only at the end.

    Full reads make block-wise processing independent of the decompressor's output sizes. Damaged data raises
    `UserError` with the file's name.
    """

    def __init__(self, source: Readable, *, name: str, path: str = ""):
        self.name = name
        self.path = path  # of a file that is read as it is, neither compressed nor in an archive
        self._source = source
        self._head = b""

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes without consuming them, fewer only at the end."""
        if len(self._head) < size:
            self._head += self._fill(size - len(self._head))
        return self._head[:size]

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        head, self._head = self._head[:size], self._head[size:]
        return head + self._fill(size - len(head)) if len(head) < size else head

    def _fill(self, size: int) -> bytes:
        parts = []
        while size > 0:
            try:
                part = self._source.read(size)
            except _ERRORS as error:
                raise _damaged(self.name, error) from error
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


_ERRORS = (
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    tarfile.TarError,
    OSError,
    MemoryError,
    *zip_members.ERRORS,
)


def _damaged(name: str, error: Exception) -> UserError:
    if isinstance(error, MemoryError) or "Memory usage limit" in str(error):
        return UserError(
            f"{name} needs more memory to decompress than is available: compress it again with the default "
            "settings of the program"
        )
    if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the decompressor
        return UserError(f"cannot read {name}: {error.strerror}")
    return UserError(
        f"{name} is damaged or cut short ({error}): download or create it again, or leave it out of the input"
    )


class _Decoder(Protocol):
    """The interface of the standard library's decoders of one stream."""

    @property
    def eof(self) -> bool:
        """Return whether the stream has ended."""
        ...

    @property
    def needs_input(self) -> bool:
        """Return whether there is no output without more input."""
        ...

    @property
    def unused_data(self) -> bytes:
        """Return the input after the end of the stream."""
        ...

    def decompress(self, data: bytes, /, max_length: int) -> bytes:
        """Return up to `max_length` bytes of output."""
        ...


class _GzipDecoder:
    """The decoder of one gzip member. `gzip.GzipFile` reads a header byte by byte, which may have gigabytes."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max_length)


class _StreamsFile:
    """Reader of a file with one or more compressed streams, and zeros between and after them."""

    def __init__(self, source: Readable, decoder: Callable[[], _Decoder]):
        self._source, self._new_decoder = source, decoder
        self._decoder = decoder()
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._decoder.eof:
                following = self._decoder.unused_data.lstrip(b"\0")
                while not following:
                    block = self._source.read(1 << 16)
                    if not block:
                        return b""
                    following = block.lstrip(b"\0")
                self._decoder, self._input = self._new_decoder(), following
            if self._decoder.needs_input:
                self._input = self._input or self._source.read(1 << 16)
                if not self._input:
                    raise EOFError("the compressed data ends in the middle of a stream")
            output = self._decoder.decompress(self._input, size)
            self._input = b""
            if output:
                return output


def _open_gzip(raw: ByteStream) -> Readable:
    return _StreamsFile(raw, _GzipDecoder)


def _open_xz(raw: ByteStream) -> Readable:
    return _StreamsFile(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_XZ_MEMORY))


class _ZstdFile:
    """Reader of a zstd file with one or more frames; unlike zstandard's own reader, it detects truncation."""

    def __init__(self, source: Readable):
        self._source = source
        self._frame = _ZSTD.decompressobj()
        self._input_size = 1 << 7  # compressed bytes per call; adapts, because nothing else bounds the output
        self._input = b""
        self._output = b""
        self._in_frame = False

    def read(self, size: int, /) -> bytes:
        while not self._output:
            self._input = self._input or self._source.read(1 << 16)
            if not self._input:
                if self._in_frame:
                    raise EOFError("the zstd data ends in the middle of a frame")
                return b""
            block, self._input = self._input[: self._input_size], self._input[self._input_size :]
            self._in_frame = True
            self._output = self._frame.decompress(block)
            if self._frame.eof:
                self._input = self._frame.unused_data + self._input
                self._frame = _ZSTD.decompressobj()
                self._in_frame = False
            grow = len(self._output) < _ZSTD_OUTPUT // 4
            self._input_size = min(self._input_size * 2, _ZSTD_INPUT) if grow else max(self._input_size // 2, 16)
        output, self._output = self._output[:size], self._output[size:]
        return output


@dataclass(frozen=True)
class _Compression:
    suffix: str
    is_magic: Callable[[bytes], bool]
    open: Callable[[ByteStream], Readable]


_COMPRESSIONS = (
    _Compression(".gz", lambda head: head.startswith(b"\x1f\x8b\x08"), _open_gzip),
    _Compression(".bz2", lambda head: head[:3] == b"BZh" and head[4:10] in _BZIP2_BLOCKS, bz2.BZ2File),  # type: ignore
    _Compression(".xz", lambda head: head.startswith(b"\xfd7zXZ\x00"), _open_xz),
    _Compression(".zst", lambda head: head.startswith(b"\x28\xb5\x2f\xfd"), _ZstdFile),
)
COMPRESSED = tuple(compression.suffix for compression in _COMPRESSIONS)
_SHORT_TAR_SUFFIXES = {".tgz": ".gz", ".tbz": ".bz2", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}


def open_texts(path: str) -> Iterator[ByteStream]:
    """Yield the decompressed file, or each regular file of an archive; read each stream before advancing to the next.

    A stream's `name` is the path, plus "/" and the member's path within an archive. Compression and archives are
    detected from the content; a suffix of a compression must agree with it.

    Raises:
        UserError: if the file cannot be read, or is damaged or truncated.
    """
    with _open(path) as file:
        yield from _texts(ByteStream(file, name=path, path=path), path)


def without_compression(name: str) -> tuple[str, str]:
    """Split a name into the uncompressed name and the compression's suffix ("" for none)."""
    suffix = PurePosixPath(name).suffix
    base, suffix = name.removesuffix(suffix), suffix.lower()
    if suffix in _SHORT_TAR_SUFFIXES:
        return base + ".tar", _SHORT_TAR_SUFFIXES[suffix]
    return (base, suffix) if suffix in {compression.suffix for compression in _COMPRESSIONS} else (name, "")


def _open(path: str) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _texts(stream: ByteStream, name: str, *, level: int = 0) -> Iterator[ByteStream]:
    if level > MAX_LEVELS:
        raise UserError(
            f"{stream.name} has more than {MAX_LEVELS} compressions and archives inside each other: unpack it first, "
            "or leave it out of the input"
        )
    head = stream.peek(512)
    base, suffix = without_compression(name)
    for compression in _COMPRESSIONS:
        if compression.is_magic(head):
            yield from _texts(ByteStream(compression.open(stream), name=stream.name), base, level=level + 1)
            return
    if suffix:
        raise _damaged(stream.name, ValueError(f"no {suffix[1:]} data at its start"))
    if head[257:262] == b"ustar" or name.endswith(".tar"):
        yield from _members(stream, level=level + 1)
    elif head.startswith(zip_members.MAGICS) and not why_not_text(head, name=name):
        yield from _zip_members(stream, level=level + 1)
    else:
        yield stream


def _zip_members(stream: ByteStream, *, level: int) -> Iterator[ByteStream]:
    try:
        for member, content in zip_members.zip_members(stream, path=stream.path):
            name = f"{stream.name}/{member}"
            yield from _texts(ByteStream(content, name=name), name, level=level)
    except zip_members.ERRORS as error:
        raise _damaged(stream.name, error) from error


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that raises for a bad or giant header or a missing end mark, where `tarfile` silently stops."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _TAR_EXTENSIONS and not 0 <= header.size <= _MAX_TAR_HEADER:
            raise _TAR_HEADER_ERROR(f"a header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> tarfile.TarInfo:  # shadows the module, like the base class
        try:
            return super().fromtarfile(tarfile)
        except _TAR_END:
            raise
        except (_TAR_HEADER_ERROR, ValueError, OverflowError) as error:
            raise _TAR_DAMAGED(f"tar: {error}") from error
        except RecursionError:
            raise _TAR_DAMAGED("tar: hundreds of headers for one member") from None


_TAR_END: type[Exception] = getattr(tarfile, "EOFHeaderError")  # noqa: B009  the type stubs lack it
_TAR_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_TAR_HEADER_ERROR = tarfile.HeaderError
_TAR_DAMAGED = tarfile.ReadError


def _members(stream: ByteStream, *, level: int) -> Iterator[ByteStream]:
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive:  # type: ignore
            while (member := archive.next()) is not None:
                archive.members = []  # otherwise it accumulates every header
                if len(archive.pax_headers) > _MAX_GLOBAL_ATTRIBUTES:
                    raise _TAR_DAMAGED("tar: thousands of global attributes")
                hidden = any(part.startswith(".") and part not in (".", "..") for part in member.name.split("/"))
                content = archive.extractfile(member) if member.isreg() and not hidden else None
                if content is not None:
                    name = f"{stream.name}/{member.name.removeprefix('./')}"
                    yield from _texts(ByteStream(content, name=name), name, level=level)
    except tarfile.TarError as error:
        raise _damaged(stream.name, error) from error
    while stream.read(1 << 20):  # the decompressor verifies the checksum only at the end
        pass
