"""Messages between the supervisor and its children: JSON and descriptors over a socket.

Standard library only.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from typing import Any, Final

MESSAGE_BYTES: Final = 64 * 1024
"""A longer message is shortened: the first items of its lists, and the beginnings of its texts."""
_DESCRIPTORS = 8
_TEXT_CHARACTERS: Final = 2048
"""The longest text in a message that is shortened: longer than a key."""

Message = dict[str, Any]


class BadMessage(ValueError):
    """What arrived is no message, or only a part of one."""


class Channel:
    """One end of a connection. A message arrives whole or not at all (SOCK_SEQPACKET)."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """The near end, and the far end for a child."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES)
        return cls(near), far

    def fileno(self) -> int:
        """The descriptor of this end, for selectors; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: tuple[int, ...] = ()) -> bool:
        """Send one message; False if the other end is gone."""
        while len(data := json.dumps(message).encode()) > MESSAGE_BYTES:
            shorter = {name: _shortened(value) for name, value in message.items()}
            if shorter == message:
                break  # the other end sees that the message is cut
            message = shorter
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

        Without ``wait``, also None if no message has arrived yet.

        Raises:
            BadMessage: something else arrived. The next message can be received.
        """
        flags = 0 if wait else socket.MSG_DONTWAIT
        descriptors = array.array("i")
        space = socket.CMSG_SPACE(_DESCRIPTORS * descriptors.itemsize)
        try:
            # Not socket.recv_fds(), which takes flags and ignores them (seen in CPython 3.11-3.13).
            data, ancillary, how, _address = self._socket.recvmsg(MESSAGE_BYTES, space, flags)
        except (ConnectionResetError, BlockingIOError):
            return None
        if not data:
            return None
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(content) - len(content) % descriptors.itemsize
                descriptors.frombytes(content[:whole])
        message = None
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(data)
        if how & socket.MSG_TRUNC or not isinstance(message, dict):
            for descriptor in descriptors:
                os.close(descriptor)
            raise BadMessage(f"{len(data)} bytes that are no whole JSON object")
        return message, list(descriptors)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _shortened(value: Any) -> Any:
    """Half of each list, and the beginning of each text."""
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value[: (len(value) + 1) // 2]]
    return value[:_TEXT_CHARACTERS] if isinstance(value, str) else value
