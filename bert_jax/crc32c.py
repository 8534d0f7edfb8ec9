"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) of large buffers with NumPy.

A checksum is linear over GF(2). The buffer is split into lanes of equal length, which are processed in parallel, two
bytes per step. A tree of operators that append zeros then combines them. 100 MB take 0.57 s on one busy core; a Python
loop over bytes takes minutes.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_LANE = 2048  # bytes
_CHUNK = 16 << 20  # bytes processed at a time; bounds temporary memory


@functools.cache
def _byte_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


@functools.cache
def _byte_list() -> list[int]:
    return _byte_table().tolist()


@functools.cache
def _pair_table() -> np.ndarray:
    """Return the table of states after two bytes, indexed by the low half of the state xor the bytes."""
    table = _byte_table()
    after_one = table[np.arange(1 << 16) & 0xFF] ^ (np.arange(1 << 16, dtype=np.uint32) >> 8)
    return (table[after_one & 0xFF] ^ (after_one >> 8)).astype(np.int64)


@functools.cache
def _zeros_operator(length: int) -> np.ndarray:
    """Return the operator that appends `length` zero bytes, uint32 [4, 256]: its result for each byte of a state."""
    if length == 1:
        states = (np.arange(256, dtype=np.uint32)[None, :] << np.arange(0, 32, 8, dtype=np.uint32)[:, None]).astype(
            np.uint32
        )
        return _byte_table()[states & 0xFF] ^ (states >> 8)
    half = _apply(_zeros_operator(length // 2), _zeros_operator(length // 2))
    return _apply(_zeros_operator(1), half) if length % 2 else half


def _apply(operator: np.ndarray, states: np.ndarray) -> np.ndarray:
    result = operator[0][states & 0xFF]
    for byte in range(1, 4):
        result = result ^ operator[byte][(states >> np.uint32(8 * byte)) & 0xFF]
    return result


def crc32c(data: bytes | np.ndarray, *, initial: int = 0) -> int:
    """Return the checksum of `data` (bytes or a uint8 array). `initial` is the checksum of the preceding data."""
    buffer = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    state = initial ^ 0xFFFFFFFF
    for start in range(0, len(buffer), _CHUNK):
        state = _advance(state, buffer[start : start + _CHUNK])
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """Return the checksum as LevelDB's tables store it: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _advance(state: int, buffer: np.ndarray) -> int:
    lanes = len(buffer) // _LANE
    if lanes > 1:
        tail = buffer[lanes * _LANE :]
        words = np.ascontiguousarray(buffer[: lanes * _LANE]).reshape(lanes, _LANE).view("<u2").T
        words = np.ascontiguousarray(words)  # each step reads one row
        # int64 is NumPy's index type; any other would be converted in every step.
        states, indices, steps = np.zeros((3, lanes), np.int64)
        states[0] = state
        table = _pair_table()
        for row in words:
            np.bitwise_and(states, 0xFFFF, out=indices)
            np.bitwise_xor(indices, row, out=indices)
            np.take(table, indices, out=steps, mode="clip")  # "raise" would copy
            np.right_shift(states, 16, out=states)
            np.bitwise_xor(states, steps, out=states)
        state = _join(states.astype(np.uint32))
        buffer = tail
    bytewise = _byte_list()
    for byte in buffer.tolist():
        state = bytewise[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def _join(states: np.ndarray) -> int:
    """Return the state after all lanes. All but the first lane started from zero."""
    length = _LANE
    while len(states) > 1:
        # An odd number gets a lane of zeros in front, which leaves a state of zero unchanged.
        if len(states) % 2:
            states = np.concatenate([np.zeros(1, np.uint32), states])
        states = _apply(_zeros_operator(length), states[0::2]) ^ states[1::2]
        length *= 2
    return int(states[0])
