"""Messages between the supervisor and its children: JSON and descriptors over a socket.

Standard library only.
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any

MESSAGE_BYTES = 128 * 1024
_DESCRIPTORS = 8

Message = dict[str, Any]


class Channel:
    """One end of a connection. A message arrives whole or not at all (SOCK_SEQPACKET)."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """The near end, and the far end to hand to a child."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES)
        return cls(near), far

    @classmethod
    def inherited(cls, descriptor: int) -> Channel:
        """The far end, in the child that got it."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> bool:
        """Send one message; False if the other end is gone."""
        data = json.dumps(message).encode()
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            if descriptors
            else []
        )
        try:
            self._socket.sendmsg([data], ancillary)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, *, wait: bool = True) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors; None once the other end is gone.

        Without ``wait`` also None where there is no message now.
        """
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            data, descriptors, _flags, _address = socket.recv_fds(
                self._socket, MESSAGE_BYTES, _DESCRIPTORS, flags
            )
        except (ConnectionResetError, BlockingIOError):
            return None
        if not data:
            return None
        message: Message = json.loads(data)
        return message, descriptors

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
