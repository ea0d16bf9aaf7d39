"""The process that tells the kernel which names and pages are out of date.

For a notification the kernel takes locks (the directory's for a name, the pages' of a file)
that a request may hold which waits for this very worker, and it waits for them in a way that
not even SIGKILL ends (fs/fuse/dir.c, fuse_reverse_inval_entry). In a thread of the worker that
would keep a killed worker from ending, the supervisor from seeing it, and so the request from
ever being answered. In a process of its own it hurts nobody: when the next worker answers the
request, the lock is free.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct

from sidecar.mounter.filesystem.nodes import Node
from sidecar.mounter.transport import protocol as p
from sidecar.mounter.transport.forked import fork_child, receive_descriptor, send_descriptor
from sidecar.mounter.transport.replies import notify

log = logging.getLogger(__name__)

_CHANGED = struct.Struct("<QQ")  # node, parent; the name follows
_MESSAGE_BYTES = 1024


class Notifier:
    """The notifying child, seen from the worker."""

    def __init__(self) -> None:
        _, self._end = fork_child(_run)
        self._end.setblocking(False)

    def connect(self, descriptor: int) -> None:
        """Give the child the connection."""
        send_descriptor(self._end, descriptor)

    def changed(self, node: Node) -> None:
        """A node that the kernel knows lost its name because the bucket changed.

        Never waits, and goes without a child that ended: names and attributes expire by
        themselves, only somewhat later.
        """
        if node.lookups and node.parent is not None:
            message = _CHANGED.pack(node.id, node.parent.id) + os.fsencode(node.name)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._end.send(message)


def _run(end: socket.socket) -> None:
    descriptor = receive_descriptor(end)
    while descriptor is not None and (message := end.recv(_MESSAGE_BYTES)):
        node, parent = _CHANGED.unpack_from(message)
        name = message[_CHANGED.size :]
        entry = p.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
        for code, body in (
            (p.Notify.INVAL_ENTRY, entry),
            (p.Notify.INVAL_INODE, p.NOTIFY_INVAL_INODE_OUT.pack(node, 0, 0)),
        ):
            try:
                notify(descriptor, code, body)
            except OSError as error:
                # ENOENT: the kernel does not have it any more.
                log.debug("notification %s: %s", code.name, error)
