"""The process that tells the kernel which names and pages are out of date.

For a notification the kernel takes locks (the directory's for a name, the pages' of a file)
that a request may hold which waits for this very worker, and it waits for them in a way that
not even SIGKILL ends (fs/fuse/dir.c, fuse_reverse_inval_entry). In a thread of the worker that
would keep a killed worker from ending, the supervisor from seeing it, and so the request from
ever being answered. In a process of its own it hurts nobody: when the next worker answers the
request, the lock is free.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from sidecar.mounter.filesystem.inodes import Inode
from sidecar.mounter.fuse import protocol as p
from sidecar.mounter.fuse.connection import answer, notify
from sidecar.mounter.fuse.readers.child import fork_child, receive_descriptor, send_descriptor

log = logging.getLogger(__name__)

_MESSAGE = struct.Struct("<QQQ")  # inode, parent, request to answer or 0; the name follows
_MESSAGE_BYTES = 1024
_PATIENCE_S = 1.0
_THREADS = 4
_NO_PAGES = -1
"""As the offset: attributes alone are out of date (fs/fuse/inode.c, fuse_reverse_inval_inode)."""


class Notifier:
    """The notifying child, seen from the worker."""

    def __init__(self) -> None:
        _, self._end = fork_child(_run)
        self._end.setblocking(False)

    def connect(self, descriptor: int) -> None:
        """Give the child the connection."""
        send_descriptor(self._end, descriptor)

    def changed(self, inode: Inode) -> None:
        """An inode that the kernel knows lost its name because the bucket changed.

        Never waits, and goes without a child that ended: names and attributes expire by
        themselves, only somewhat later.
        """
        if inode.lookups:
            self._send(inode, 0)

    def answer_stale(self, unique: int, inode: Inode) -> bool:
        """Answer a request with ESTALE, once the kernel does not believe in the inode's name.

        So whoever gets the answer and opens the file again is asked about the name. Never waits;
        False where there is nobody to do it.
        """
        return self._send(inode, unique)

    def _send(self, inode: Inode, unique: int) -> bool:
        if inode.parent is None:
            return False
        message = _MESSAGE.pack(inode.id, inode.parent.id, unique) + os.fsencode(inode.name)
        try:
            self._end.send(message)
        except (BlockingIOError, ConnectionError):
            return False
        return True


class _Name(NamedTuple):
    """A name that is out of date, and the inode that had it."""

    inode: int
    parent: int
    name: bytes


def _run(end: socket.socket) -> None:
    """What waits for pages waits for READs, and must not delay the answers to READs."""
    descriptor = receive_descriptor(end)
    if descriptor is None:
        return
    changes = ThreadPoolExecutor(1)
    answers = _StaleAnswers(descriptor)
    while message := end.recv(_MESSAGE_BYTES):
        inode, parent, unique = _MESSAGE.unpack_from(message)
        name = _Name(inode, parent, message[_MESSAGE.size :])
        if unique:
            answers.give(unique, name)
        else:
            changes.submit(_forget, descriptor, name, 0)


class _StaleAnswers:
    """Answers that follow a notification, or do without it after a moment.

    The directory's lock may be held by whoever waits for the very answer: a program that reads
    a directory into memory that is a map of the file, say.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._threads = ThreadPoolExecutor(_THREADS)
        self._pending: dict[_Name, tuple[Future[None], float]] = {}

    def give(self, unique: int, name: _Name) -> None:
        """Answer one request."""
        now_s = time.monotonic()
        pending = self._pending.get(name)
        if pending is None:
            future = self._threads.submit(_forget, self._descriptor, name, _NO_PAGES)
            pending = self._pending[name] = future, now_s + _PATIENCE_S
        future, until_s = pending
        wait([future], max(0.0, until_s - now_s))
        if future.done():
            del self._pending[name]
        answer(self._descriptor, unique, errno.ESTALE)


def _forget(descriptor: int, name: _Name, offset: int) -> None:
    """Tell the kernel that a name, its attributes, and its pages from ``offset`` are old."""
    entry = p.NOTIFY_INVAL_ENTRY_OUT.pack(name.parent, len(name.name), 0) + name.name + b"\0"
    for code, body in (
        (p.Notify.INVAL_ENTRY, entry),
        (p.Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE_OUT.pack(name.inode, offset, 0)),
    ):
        try:
            notify(descriptor, code, body)
        except OSError as error:
            # ENOENT: the kernel does not have it any more.
            log.debug("notification %s: %s", code.name, error)
