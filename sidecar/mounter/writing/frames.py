"""Frames: the records of a file, each with its length and a checksum.

Damaged, torn or forged bytes are found and passed over, and the frames after them are read. A
reader takes no more memory than one frame, and no more time than a few readings of the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MARK = b"\xf5\xffMS"
"""The beginning of a frame. Its first two bytes are in no text of UTF-8."""
MOST_PAYLOAD_BYTES = 32 * 1024 * 1024

_HEAD = struct.Struct("<4sII")  # mark, length of the payload, checksum
_SEARCH_BYTES = 1024 * 1024
_MOST_VAIN_BYTES = 256 * 1024 * 1024
"""How many bytes to read of apparent frames that are none. Each counts as a page at least."""
_PAGE_BYTES = 4096


class Damage(NamedTuple):
    """Bytes that are no record.

    Attributes:
        is_end: no record follows, as after a process that was killed while it wrote one.
    """

    offset: int
    size_bytes: int
    why: str
    is_end: bool = False


def frame(payload: bytes) -> bytes:
    """The bytes of a payload's frame."""
    length = len(payload)
    return _HEAD.pack(MARK, length, zlib.crc32(payload, length)) + payload


def read_frames(file: BinaryIO, size_bytes: int) -> Iterator[tuple[int, bytes] | Damage]:
    """(offset, payload) of each frame from ``file``'s position on, and each damage.

    Zeros at the end are room that was not used yet: neither a frame nor damage.

    Args:
        size_bytes: read no further than this offset.
    """
    position = file.tell()
    good = position  # the end of the last frame
    why = ""
    vain_bytes = 0
    while position < size_bytes:
        head = file.read(_HEAD.size)
        if len(head) == _HEAD.size and head.startswith(MARK):
            _, length, checksum = _HEAD.unpack(head)
            end = position + _HEAD.size + length
            payload = b""
            if length <= MOST_PAYLOAD_BYTES and end <= size_bytes:
                payload = file.read(length)
            if len(payload) == length and zlib.crc32(payload, length) == checksum:
                if good < position:
                    yield Damage(good, position - good, why)
                yield position, payload
                position, good, why = end, end, ""
                continue
            vain_bytes += max(_PAGE_BYTES, len(payload))
            why = why or "the checksum is wrong"
        why = why or "no record begins here"
        if vain_bytes > _MOST_VAIN_BYTES:
            yield Damage(good, size_bytes - good, "too much of it looks like records")
            return
        position = _find_mark(file, position + 1, size_bytes)
        file.seek(position)
    if good < size_bytes and not _is_zero(file, good, size_bytes):
        yield Damage(good, size_bytes - good, why, is_end=True)


def _find_mark(file: BinaryIO, start: int, end: int) -> int:
    """Where the next frame may begin; ``end`` if there is no other mark."""
    file.seek(start)
    before = b""
    while start < end and (more := file.read(min(_SEARCH_BYTES, end - start))):
        found = (before + more).find(MARK)
        if found >= 0:
            return start - len(before) + found
        start += len(more)
        before = (before + more)[-len(MARK) + 1 :]
    return end


def _is_zero(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    while start < end and (more := file.read(min(_SEARCH_BYTES, end - start))):
        if more != bytes(len(more)):
            return False
        start += len(more)
    return True
