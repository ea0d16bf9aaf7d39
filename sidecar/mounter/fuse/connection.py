"""Writes answers and notifications to a FUSE connection.

Any process that shares the descriptor may use it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os

from sidecar.mounter.fuse import protocol as p
from sidecar.mounter.system.shortage import NO_THREAD

log = logging.getLogger(__name__)

Reply = list[bytes] | list[bytearray] | list[memoryview]
"""The bytes after the header of an answer, in pieces. Often empty."""


def answer(descriptor: int, unique: int, code: int, reply: Reply | tuple[()] = ()) -> bool:
    """Answer a request with an errno (0: success) and a reply, gathered from where it lies.

    False if the kernel no longer waits for it: the caller was killed, and has an answer.
    """
    size = p.OUT_HEADER.size + sum(map(len, reply))
    header = p.OUT_HEADER.pack(size, -code, unique)
    try:
        os.writev(descriptor, (header, *reply))
    except OSError as error:
        # ENODEV: unmounted meanwhile.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EBADF):
            return error.errno != errno.ENOENT
        log.warning("the kernel refused an answer of %d bytes: %s", size, error)
        if code == 0:
            return answer(descriptor, unique, errno.EIO)
    return True


def notify(descriptor: int, code: p.Notify, body: bytes = b"") -> None:
    """Send the kernel a message that it did not ask for. Raises OSError."""
    header = p.OUT_HEADER.pack(p.OUT_HEADER.size + len(body), code, 0)
    os.writev(descriptor, (header, body))


def fill_pages(descriptor: int, inode: int, offset: int, content: memoryview) -> None:
    """Put content that nobody asked for into the page cache of an inode.

    Waits for pages that a READ in flight will fill. Content that the kernel refuses is lost: it
    will ask for it.
    """
    store = p.NOTIFY_STORE_OUT.pack(inode, offset, len(content), 0)
    size = p.OUT_HEADER.size + len(store) + len(content)
    with contextlib.suppress(OSError):  # ENOENT: the inode is forgotten
        os.writev(descriptor, (p.OUT_HEADER.pack(size, p.Notify.STORE, 0), store, content))


def end_if_starved(error: BaseException) -> None:
    """End this process at once if memory has run out: the kernel asks the next worker again.

    The error, or a cause of it, is MemoryError, a system call's ENOMEM, or a thread without room
    for its stack.
    """
    cause: BaseException | None = error
    while cause is not None:
        if (
            isinstance(cause, MemoryError)
            or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
            or (isinstance(cause, RuntimeError) and str(cause) == NO_THREAD)
        ):
            os._exit(os.EX_OSERR)
        cause = cause.__cause__ or cause.__context__
