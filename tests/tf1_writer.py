"""Write TF1 checkpoints for tests: an SSTable index and a data file, block by block, in one or several shards."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_jax.crc32c import masked_crc32c

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
DTYPES = {np.dtype("<f4"): 1, np.dtype("<f2"): 19, np.dtype("<i8"): 9}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(array: np.ndarray, *, shard: int, offset: int, crc: int) -> bytes:
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    message = field(1, DTYPES[array.dtype]) + field(2, shape)
    if shard:
        message += field(3, shard)
    if offset:
        message += field(4, offset)
    return message + field(5, array.nbytes) + varint(6 << 3 | 5) + crc.to_bytes(4, "little")


def block(items: list[tuple[bytes, bytes]], *, restart_every: int = 16) -> bytes:
    out, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(items):
        shared = 0
        if number % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    for restart in restarts or [0]:
        out += restart.to_bytes(4, "little")
    return bytes(out) + max(1, len(restarts)).to_bytes(4, "little")


def snappy(data: bytes) -> bytes:
    """Compress with literals and, where 8 bytes come back, a copy: enough to exercise a decompressor."""
    out, at, literal = bytearray(varint(len(data))), 0, bytearray()

    def flush() -> None:
        for start in range(0, len(literal), 60):
            piece = literal[start : start + 60]
            out.append((len(piece) - 1) << 2)
            out.extend(piece)
        literal.clear()

    while at < len(data):
        found = data.rfind(data[at : at + 8], max(0, at - 60000), at) if at + 8 <= len(data) else -1
        if found >= 0:
            flush()
            out.append((8 - 1) << 2 | 2)
            out += (at - found).to_bytes(2, "little")
            at += 8
        else:
            literal.append(data[at])
            at += 1
    flush()
    return bytes(out)


def table(items: list[tuple[bytes, bytes]], *, block_items: int = 40, compress: bool = False) -> bytes:
    out = bytearray()

    def add(content: bytes, *, compress: bool = False) -> bytes:
        start = len(out)
        body = (snappy(content) if compress else content) + bytes([compress])
        out.extend(body + masked_crc32c(body).to_bytes(4, "little"))
        return varint(start) + varint(len(body) - 1)

    index = []
    for start in range(0, len(items), block_items):
        part = items[start : start + block_items]
        index.append((part[-1][0], add(block(part), compress=compress)))
    meta = add(block([]))
    footer = meta + add(block(index, restart_every=1))
    return bytes(out) + footer.ljust(40, b"\0") + MAGIC


def write_checkpoint(
    prefix: Path, tensors: Mapping[str, np.ndarray], *, num_shards: int = 1, compress: bool = False
) -> None:
    data = [bytearray() for _ in range(num_shards)]
    items = [(b"", field(1, num_shards) + field(3, field(1, 1)))]
    for number, name in enumerate(sorted(tensors)):
        array = np.ascontiguousarray(tensors[name])
        shard = number % num_shards
        items.append(
            (
                name.encode(),
                entry(array, shard=shard, offset=len(data[shard]), crc=masked_crc32c(array.tobytes())),
            )
        )
        data[shard] += array.tobytes()
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(items, compress=compress))
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}").write_bytes(content)
