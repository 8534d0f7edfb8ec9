"""Reader of SSTables, LevelDB's table format, which TF1 checkpoints use for their index. Files are not trusted.

* Footer (48 bytes): two block handles (offset and size as varints), padding, a magic number.
* Block: entries (shared prefix, rest of the key, value), then restart points. A byte with the compression and a masked
  CRC-32C follow it.
"""

from collections.abc import Iterator

from bert_jax.crc32c import masked_crc32c

MAX_BYTES = 64 << 20  # the index of BERT-Large with Adam's moments has 60 KB
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5
_MAX_KEY_BYTES = 4  # per byte of the file; shared prefixes are written once, so BERT's keys have 1 to 2 per byte
_MAX_EXPANSION = 22  # of snappy: a copy of 64 bytes takes 3 bytes


class TableError(Exception):
    """A damaged table."""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint (base-128 number) at offset `at`, and the offset after it."""
    value = 0
    for count, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + count + 1
    raise TableError("a number is truncated or has more than 64 bits")


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Return the entries of a table.

    Raises:
      TableError: if it is inconsistent or differs from its checksums.
    """
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise TableError("it does not end like an SSTable")
    footer = len(data) - _FOOTER
    _, at = _read_handle(data, footer)  # the meta-index, for filters, which are not used
    index, _ = _read_handle(data, at)
    entries: dict[bytes, bytes] = {}
    last_end = key_bytes = 0
    for _, value in _entries(_read_block(data, index, limit=footer)):
        handle = _read_handle(value, 0)[0]
        if handle[0] < last_end:
            raise TableError("two of its blocks overlap")
        last_end = handle[0] + handle[1]
        for key, content in _entries(_read_block(data, handle, limit=footer)):
            if entries and key <= next(reversed(entries)):
                raise TableError("its keys are not in order")
            entries[key] = content
            key_bytes += len(key)
            if key_bytes > _MAX_KEY_BYTES * len(data) + 65536:
                raise TableError("its keys are far larger than the file")
    return entries


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _read_block(data: bytes, handle: tuple[int, int], *, limit: int) -> bytes:
    offset, size = handle
    end = offset + size
    if end + _TRAILER > limit:
        raise TableError("a block is outside the file")
    if masked_crc32c(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + _TRAILER], "little"):
        raise TableError("the checksum of a block differs")
    compression = data[end]
    if compression == 0:
        return data[offset:end]
    if compression == 1:
        return decompress_snappy(data[offset:end])
    raise TableError(f"a block has the unknown compression {compression}")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise TableError("a block is too short")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise TableError("a block has more restart points than bytes")
    key, at = b"", 0
    while at < end:
        shared, at = read_varint(block, at)
        rest, at = read_varint(block, at)
        size, at = read_varint(block, at)
        if shared > len(key) or at + rest + size > end:
            raise TableError("an entry is outside its block")
        key = key[:shared] + block[at : at + rest]
        if len(key) > 4096:
            raise TableError("a key is longer than any variable's name")
        at += rest
        yield key, block[at : at + size]
        at += size


def decompress_snappy(data: bytes) -> bytes:
    """Decompress a snappy block: literals, and copies of 1 to 64 bytes of the preceding output.

    Raises:
      TableError: if it is damaged, or its output would be more than 22 times as large as the input.
    """
    size, at = read_varint(data, 0)
    if size > _MAX_EXPANSION * len(data):
        raise TableError("a compressed block claims an impossible size")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        kind, at = tag & 3, at + 1
        if kind == 0:
            length, at = _literal_length(data, tag, at)
            if at + length > len(data):
                raise TableError("a compressed block is cut off")
            out += data[at : at + length]
            at += length
        else:
            extra = (0, 1, 2, 4)[kind]
            if at + extra > len(data):
                raise TableError("a compressed block is cut off")
            if kind == 1:
                length, offset = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
            else:
                length, offset = (tag >> 2) + 1, int.from_bytes(data[at : at + extra], "little")
            at += extra
            if not 0 < offset <= len(out):
                raise TableError("a compressed block copies from before its start")
            start = len(out) - offset
            chunk = out[start : start + length]  # shorter if source and target overlap; then it repeats
            out += (chunk * -(-length // len(chunk)))[:length]
        if len(out) > size:
            raise TableError("a compressed block is larger than it says")
    if len(out) != size:
        raise TableError("a compressed block is smaller than it says")
    return bytes(out)


def _literal_length(data: bytes, tag: int, at: int) -> tuple[int, int]:
    short = tag >> 2
    if short < 60:
        return short + 1, at
    extra = short - 59
    return int.from_bytes(data[at : at + extra], "little") + 1, at + extra
