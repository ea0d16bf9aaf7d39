"""The process that tells the kernel which names, attributes and pages are out of date.

Decides nothing: the worker says what is out of date.

For a notification the kernel takes locks: the directory's for a name, the pages' of a file. A
request in flight to this very worker may hold them, and not even SIGKILL ends the wait for them
(fs/fuse/dir.c, fuse_reverse_inval_entry). In a thread of the worker, a killed worker would never
end, the supervisor would not see its end, and the request would never be answered. A process of
its own may wait: when the next worker answers the request, the lock is free.
"""

from __future__ import annotations

import errno
import logging
import marshal
import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from sidecar.mounter.filesystem.inodes import Inode
from sidecar.mounter.fuse.codec import inval_entry_out, inval_inode_out
from sidecar.mounter.fuse.connection import answer, notify
from sidecar.mounter.fuse.protocol import Notify
from sidecar.mounter.fuse.readers.child import fork_child, receive_descriptor, send_descriptor

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 1024
_LONGEST_WAIT_S = 1.0
_THREADS = 4


class _Name(NamedTuple):
    """A name that is out of date, and the inode that had it."""

    inode: int
    parent: int
    name: bytes


class _Message(NamedTuple):
    """What the worker tells the notifying process. Marshalled: both ends are one program.

    Attributes:
        name: tell the kernel that this is out of date.
        stale_request: then answer this request with ESTALE; None if there is none to answer.
    """

    name: _Name
    stale_request: int | None

    def pack(self) -> bytes:
        return marshal.dumps((tuple(self.name), self.stale_request))

    @classmethod
    def unpack(cls, message: bytes) -> _Message:
        name, stale_request = marshal.loads(message)  # noqa: S302 - from our socket pair
        return cls(_Name(*name), stale_request)


class Notifier:
    """The notifying process, seen from the worker. Its methods never wait."""

    def __init__(self) -> None:
        _, self._end = fork_child(_run)
        self._end.setblocking(False)

    def connect(self, descriptor: int) -> None:
        """Give it the connection to the kernel."""
        send_descriptor(self._end, descriptor)

    def changed(self, inode: Inode) -> None:
        """An inode lost its name because the bucket changed.

        Does nothing if the process has ended: names and attributes expire by themselves, only
        later.
        """
        if inode.lookups:
            self._send(inode, None)

    def answer_stale(self, unique: int, inode: Inode) -> bool:
        """Answer a request with ESTALE, once the kernel does not believe in the inode's name.

        So the kernel looks the name up when the program opens the file again. False if the
        process cannot do it.
        """
        return self._send(inode, unique)

    def _send(self, inode: Inode, stale_request: int | None) -> bool:
        if inode.parent is None:
            return False
        name = _Name(inode.id, inode.parent.id, os.fsencode(inode.name))
        try:
            self._end.send(_Message(name, stale_request).pack())
        except (BlockingIOError, ConnectionError):
            return False
        return True


def _run(end: socket.socket) -> None:
    """Notify and answer until the worker is gone.

    Changes have a thread of their own: they wait for pages, which READs will fill, and must not
    delay the answers to READs.
    """
    descriptor = receive_descriptor(end)
    if descriptor is None:
        return
    changes = ThreadPoolExecutor(1)
    answers = _StaleAnswers(descriptor)
    while received := end.recv(_MESSAGE_BYTES):
        message = _Message.unpack(received)
        if message.stale_request is None:
            changes.submit(_invalidate, descriptor, message.name, pages=True)
        else:
            answers.give(message.stale_request, message.name)


class _StaleAnswers:
    """Answers that wait for a notification, but not for long.

    The directory's lock may be held by the program that waits for this very answer: one that
    reads a directory into memory that is a map of the file, say.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._threads = ThreadPoolExecutor(_THREADS)
        self._pending: dict[_Name, tuple[Future[None], float]] = {}

    def give(self, unique: int, name: _Name) -> None:
        """Answer a request once the name is invalidated, or after _LONGEST_WAIT_S."""
        now_s = time.monotonic()
        pending = self._pending.get(name)
        if pending is None:
            future = self._threads.submit(_invalidate, self._descriptor, name, pages=False)
            pending = self._pending[name] = future, now_s + _LONGEST_WAIT_S
        future, until_s = pending
        wait([future], max(0.0, until_s - now_s))
        if future.done():
            del self._pending[name]
        answer(self._descriptor, unique, errno.ESTALE)


def _invalidate(descriptor: int, name: _Name, *, pages: bool) -> None:
    """Tell the kernel that a name and its inode's attributes are out of date, and its ``pages``."""
    for code, body in (
        (Notify.INVAL_ENTRY, inval_entry_out(name.parent, name.name)),
        (Notify.INVAL_INODE, inval_inode_out(name.inode, pages=pages)),
    ):
        try:
            notify(descriptor, code, body)
        except OSError as error:
            # ENOENT: the kernel does not have it any more.
            log.debug("notification %s: %s", code.name, error)
