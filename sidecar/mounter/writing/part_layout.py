"""How a file whose final length is not known yet is cut into parts."""

from __future__ import annotations

from sidecar.mounter.store.interface import Limits

_GROUPS = 10
_CHUNK_BYTES = 256 * 1024
"""Parts of Google Cloud Storage are multiples of this, except the last one."""


class PartLayout:
    """Where the parts of a file begin and end, whatever its length. Numbers begin at 1.

    The first tenth of the parts that a store allows has ``part_bytes`` each, and every further
    tenth parts of twice the size, up to the store's largest. So little is lost when a small file
    is sent again, and 8 MiB reach 8 TiB on S3, 38 TiB on Azure.

    Attributes:
        most_bytes: the longest object of the store.
    """

    def __init__(self, part_bytes: int, limits: Limits) -> None:
        self.most_bytes = limits.max_object_bytes
        wanted = max(part_bytes, limits.min_part_bytes)
        self._first_bytes = -(-wanted // _CHUNK_BYTES) * _CHUNK_BYTES
        self._largest_bytes = limits.max_part_bytes // _CHUNK_BYTES * _CHUNK_BYTES
        self._group = max(1, limits.max_parts // _GROUPS)

    def size(self, number: int) -> int:
        """The length in bytes of a part that is not the last."""
        group = min(_GROUPS - 1, (number - 1) // self._group)
        return min(self._first_bytes << group, self._largest_bytes)

    def start(self, number: int) -> int:
        """Offset of the first byte of a part."""
        start, left = 0, number - 1
        for group in range(_GROUPS):
            count = left if group == _GROUPS - 1 else min(left, self._group)
            start += count * min(self._first_bytes << group, self._largest_bytes)
            left -= count
        return start

    def number(self, offset: int) -> int:
        """The part that holds the byte at ``offset``."""
        number = 1
        for group in range(_GROUPS):
            size = min(self._first_bytes << group, self._largest_bytes)
            if group == _GROUPS - 1 or offset < size * self._group:
                return number + offset // size
            offset -= size * self._group
            number += self._group
        raise AssertionError  # the last group has no end

    def covering(self, offset: int, size_bytes: int) -> range:
        """The parts that a range overlaps; none for an empty range."""
        if size_bytes <= 0:
            return range(0)
        return range(self.number(offset), self.number(offset + size_bytes - 1) + 1)
