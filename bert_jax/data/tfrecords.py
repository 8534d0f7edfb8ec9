"""Records of a TFRecord file, one after the other: the format in which TFDS stores data sets by default.

A record is its length (8 bytes), the masked CRC-32C of that, the content, and the masked CRC-32C of the content
(tensorflow/core/lib/io/record_writer.h). There is no index, so a file is read from its start.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from bert_jax.crc32c import masked_crc32c
from bert_jax.errors import UserError

_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I")
_MAX_BYTES = 1 << 30  # of a record; a damaged length would otherwise ask for all memory


def read_tfrecords(stream: BinaryIO, *, name: str) -> Iterator[bytes]:
    """Yield the records of a file.

    Raises:
        UserError: if it is damaged or cut short.
    """
    while head := stream.read(_HEAD.size):
        length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, -1)
        if checksum != masked_crc32c(head[:8]) or length > _MAX_BYTES:
            raise _damaged(name)
        content, foot = stream.read(length), stream.read(_FOOT.size)
        if len(foot) != _FOOT.size or _FOOT.unpack(foot)[0] != masked_crc32c(content):
            raise _damaged(name)
        yield content


def _damaged(name: str) -> UserError:
    return UserError(f"{name} is damaged or cut short: delete its folder and prepare the TFDS data set again")
