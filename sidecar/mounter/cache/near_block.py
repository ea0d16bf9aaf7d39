"""Names and bytes of blocks of objects in a near bucket. No I/O."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import NamedTuple

from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES
from sidecar.units import MIB

NEAR_BLOCK_BYTES = 2 * MIB
"""Part of an object in one object of the near bucket. An object's last block is shorter."""
_LAYOUT = "mount-sidecar-near-1"
"""The beginning of every key. Another layout has another one, so that no reader is mistaken."""
_CHUNK_BYTES = CACHE_BLOCK_BYTES
"""Each chunk has its own checksum."""
_CHECKSUM = struct.Struct("<I")
_CLAIM = struct.Struct("<8sd")  # magic, end in seconds since the epoch
_CLAIM_MAGIC = b"claimed1"
_STRIDE_BYTES = _CHECKSUM.size + _CHUNK_BYTES


def object_name(origin: str, key: str, version: str) -> str:
    """The common part of the names of a version's blocks."""
    return hashlib.sha256("\0".join((origin, key, version)).encode()).hexdigest()


class BlockName(NamedTuple):
    """One block.

    Attributes:
        object_name: from :func:`object_name`.
        number: the block's in the object, from 0.
        size_bytes: how much of the object it has.
    """

    object_name: str
    number: int
    size_bytes: int

    @property
    def key(self) -> str:
        """The block's key in the near bucket."""
        return f"{_LAYOUT}/{self.object_name[:2]}/{self.object_name}/{self.number}"

    def stored_range(self, start: int, end: int) -> tuple[int, int]:
        """Offset and length of the stored chunks with the block's bytes ``[start, end)``."""
        first, last = start // _CHUNK_BYTES, -(-end // _CHUNK_BYTES)
        stop = min(last * _CHUNK_BYTES, self.size_bytes) + last * _CHECKSUM.size
        return first * _STRIDE_BYTES, stop - first * _STRIDE_BYTES

    def pack(self, content: memoryview) -> bytes:
        """The whole block in its stored form."""
        parts: list[bytes | memoryview] = []
        for start in range(0, self.size_bytes, _CHUNK_BYTES):
            chunk = content[start : start + _CHUNK_BYTES]
            parts += (_CHECKSUM.pack(self._checksum(start, chunk)), chunk)
        return b"".join(parts)

    def unpack(self, stored: memoryview, start: int, into: memoryview) -> bool:
        """Take bytes out of the chunks of ``stored_range``. False if one is not as it was put.

        Args:
            start: the offset of ``into`` in the block.
        """
        first = start - start % _CHUNK_BYTES
        end = start + len(into)
        at = 0
        for low in range(first, end, _CHUNK_BYTES):
            high = min(low + _CHUNK_BYTES, self.size_bytes)
            chunk = stored[at + _CHECKSUM.size : at + _CHECKSUM.size + high - low]
            if _CHECKSUM.unpack_from(stored, at)[0] != self._checksum(low, chunk):
                return False
            take, stop = max(low, start), min(high, end)
            into[take - start : stop - start] = chunk[take - low : stop - low]
            at += _STRIDE_BYTES
        return True

    def _checksum(self, start: int, chunk: memoryview) -> int:
        """The checksum of a chunk's identity and content, so that another chunk fails it."""
        return zlib.crc32(chunk, zlib.crc32(f"{self.key}:{start}".encode()))


def claim(expires_s: float) -> bytes:
    """The bytes that stand for a block while somebody is fetching it.

    Args:
        expires_s: the end of the claim, in seconds since the epoch.
    """
    return _CLAIM.pack(_CLAIM_MAGIC, expires_s)


def claim_expires_s(stored: memoryview) -> float | None:
    """The end of a claim; None if it is no claim."""
    if len(stored) != _CLAIM.size or bytes(stored[:8]) != _CLAIM_MAGIC:
        return None
    return float(_CLAIM.unpack(stored)[1])
