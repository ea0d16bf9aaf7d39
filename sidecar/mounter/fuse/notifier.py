"""The process that tells the kernel which names, attributes and pages are out of date.

For a notification the kernel takes locks: the directory's for a name, the pages' for a file. A
request in flight to this very worker may hold them, and not even SIGKILL ends the wait for them
(fs/fuse/dir.c, fuse_reverse_inval_entry). If a thread of the worker waited, a killed worker would
never end, the supervisor would not see its end, and the request would never be answered. A process
of its own may wait: when the next worker answers the request, the lock is free.
"""

from __future__ import annotations

import errno
import logging
import marshal
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from sidecar.mounter.filesystem.inodes.inode import Inode
from sidecar.mounter.fuse.codec import inval_entry_out, inval_inode_out
from sidecar.mounter.fuse.connection import answer, notify
from sidecar.mounter.fuse.protocol import Notify
from sidecar.mounter.fuse.readers.child import fork_child, receive_descriptor, send_descriptor

log = logging.getLogger(__name__)

_TOGETHER = 64
_MESSAGE_BYTES = 64 * 1024
_LONGEST_WAIT_S = 1.0
_THREADS = 4
_MOST_EXCESS = 8192


class _Name(NamedTuple):
    """A name that is out of date, and the inode that had it."""

    inode: int
    parent: int
    name: bytes


class _Message(NamedTuple):
    """What the worker tells the notifying process. Marshalled: both ends are one program.

    Attributes:
        name: the name that is out of date.
        stale_request: a request to answer with ESTALE after that; None if there is none.
        excess: names that are valid, but that the kernel should forget.
    """

    name: _Name | None
    stale_request: int | None
    excess: Sequence[_Name] = ()

    def pack(self) -> bytes:
        fields: tuple[Any, ...] = (
            tuple(self.name) if self.name is not None else None,
            self.stale_request,
            [tuple(name) for name in self.excess],
        )
        return marshal.dumps(fields)

    @classmethod
    def unpack(cls, message: bytes) -> _Message:
        name, stale_request, excess = marshal.loads(message)  # noqa: S302 - from our socket pair
        names = [_Name(*other) for other in excess]
        return cls(_Name(*name) if name is not None else None, stale_request, names)


class Notifier:
    """The worker's side of the notifying process. Its methods never wait.

    Args:
        started: called in the process before anything else.

    Attributes:
        pid: of the process.
    """

    def __init__(self, started: Callable[[], None] = lambda: None) -> None:
        def run(end: socket.socket) -> None:
            started()
            _run(end)

        self.pid, self._end = fork_child("notifier", run)
        self._end.setblocking(False)

    def connect(self, descriptor: int) -> None:
        """Give the process the connection to the kernel."""
        send_descriptor(self.pid, self._end, descriptor)

    def changed(self, inode: Inode) -> None:
        """Tell it that an inode lost its name because the bucket changed."""
        if inode.lookups and inode.parent is not None:
            self._send(_Message(_name_of(inode), None))

    def forget(self, inodes: Sequence[Inode]) -> None:
        """Make the kernel forget the names of these inodes, and then the inodes."""
        names = [_name_of(inode) for inode in inodes if inode.parent is not None]
        for start in range(0, len(names), _TOGETHER):
            if not self._send(_Message(None, None, names[start : start + _TOGETHER])):
                return  # it has enough to do already

    def answer_stale(self, unique: int, inode: Inode) -> bool:
        """Answer a request with ESTALE, once the kernel has dropped the inode's name.

        So the kernel looks the name up when the program opens the file again. False if the
        process cannot do it.
        """
        return inode.parent is not None and self._send(_Message(_name_of(inode), unique))

    def _send(self, message: _Message) -> bool:
        try:
            self._end.send(message.pack())
        except (BlockingIOError, ConnectionError):
            return False
        return True


def _name_of(inode: Inode) -> _Name:
    assert inode.parent is not None
    return _Name(inode.id, inode.parent.id, os.fsencode(inode.name))


def _run(end: socket.socket) -> None:
    """Notify and answer until the worker is gone.

    Changes have a thread of their own: they wait for pages, which READs will fill, and must not
    delay the answers to READs. Names to forget have another one, since thousands may come.
    """
    descriptor = receive_descriptor(end)
    if descriptor is None:
        return
    changes, excess = ThreadPoolExecutor(1), _Excess(descriptor)
    answers = _StaleAnswers(descriptor)
    while received := end.recv(_MESSAGE_BYTES):
        message = _Message.unpack(received)
        if message.name is None:
            excess.forget(message.excess)
        elif message.stale_request is None:
            changes.submit(_invalidate, descriptor, message.name, pages=True)
        else:
            answers.give(message.stale_request, message.name)


class _Excess:
    """Names that the kernel should forget, each when the lock of its directory is free."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._names: queue.SimpleQueue[_Name] = queue.SimpleQueue()
        threading.Thread(target=self._forget_all, name="excess", daemon=True).start()

    def forget(self, names: Sequence[_Name]) -> None:
        """Forget names, unless very many wait already."""
        for name in names:
            if self._names.qsize() < _MOST_EXCESS:
                self._names.put(name)

    def _forget_all(self) -> None:
        while True:
            name = self._names.get()
            _notify(self._descriptor, Notify.INVAL_ENTRY, inval_entry_out(name.parent, name.name))


class _StaleAnswers:
    """Answers that wait for a notification, but not for long.

    The program that waits for this very answer may hold the directory's lock: for example one that
    reads a directory into memory that is a map of the file.
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
    entry, inode = Notify.INVAL_ENTRY, Notify.INVAL_INODE
    _notify(descriptor, entry, inval_entry_out(name.parent, name.name))
    _notify(descriptor, inode, inval_inode_out(name.inode, pages=pages))


def _notify(descriptor: int, code: Notify, body: bytes) -> None:
    try:
        notify(descriptor, code, body)
    except OSError as error:
        # ENOENT: the kernel has forgotten it already.
        log.debug("notification %s: %s", code.name, error)
