"""Whether the kernel asks for each open(2), or opens the files of a mount by itself."""

from __future__ import annotations

from sidecar.mounter.store.interface import ObjectInfo

JUDGED_OPENS = 1000
WORTH_BYTES = 1024 * 1024
"""Mean size of opened files above which answering opens pays: an answer costs 0.1 ms, and saves
half a second for each gigabyte of a local copy that the kernel reads by itself."""


class OpenPolicy:
    """The policy of one mount. Opens left to the kernel stay so (FUSE_NO_OPEN_SUPPORT).

    Args:
        needed: every open must be answered, because files are written or read by their handles.
        by_copy: an opened file may have a whole copy on local disk, which the kernel reads by
            itself (passthrough). That pays for large files. Small ones are read once, stay in
            the page cache, and are opened again and again.
    """

    def __init__(self, *, needed: bool, by_copy: bool) -> None:
        self.needed = needed
        self._by_copy = by_copy
        self._opened = self._opened_bytes = 0

    def is_answered(self, info: ObjectInfo, *, others_open: bool) -> bool:
        """Whether to answer the open of a file that is this object, if no answer is needed.

        Args:
            others_open: other files are open. Then opens are not left to the kernel, which would
                never say that those files are closed (fs/fuse/file.c, fuse_file_put(), Linux 6.18).
        """
        self._opened += 1
        self._opened_bytes += info.size_bytes
        small = self._opened >= JUDGED_OPENS and self._opened_bytes < self._opened * WORTH_BYTES
        if small and not others_open:
            self._by_copy = False
        return self._by_copy
