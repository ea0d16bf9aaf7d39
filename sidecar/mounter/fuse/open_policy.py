"""Whether the kernel asks for each open(2), or opens the files of a mount by itself."""

from __future__ import annotations

from sidecar.mounter.store.interface import ObjectInfo

JUDGED_OPENS = 1000
WORTH_BYTES = 1024 * 1024
"""Mean size of the files that are opened, from which on an answer saves what it costs: 0.1 ms
for an open, against half a second for each gigabyte of a copy that the kernel reads by itself."""


class OpenPolicy:
    """Decides it for one mount; once given away it cannot be taken back (FUSE_NO_OPEN_SUPPORT).

    Args:
        needed: files are written, or read by their handles.
        by_copy: what is opened may be a whole copy on local disk, which the kernel reads by
            itself. That pays for large files. Small ones are read once, and then are in the
            page cache, opened again and again.
    """

    def __init__(self, *, needed: bool, by_copy: bool) -> None:
        self.needed = needed
        self._by_copy = by_copy
        self._opened = self._opened_bytes = 0

    def is_answered(self, info: ObjectInfo, *, others_open: bool) -> bool:
        """Whether to answer the open of a file that is this object, where it is not needed.

        Args:
            others_open: files are open by then. The kernel would never say that they are closed
                (fuse_file_put() of fs/fuse/file.c, Linux 6.18), so opens are not given away then.
        """
        self._opened += 1
        self._opened_bytes += info.size_bytes
        small = self._opened >= JUDGED_OPENS and self._opened_bytes < self._opened * WORTH_BYTES
        if small and not others_open:
            self._by_copy = False
        return self._by_copy
