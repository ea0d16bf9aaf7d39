"""One client of the HTTP server: its socket, what came, and what goes. Never waits.

If an operation would have to wait, it raises BlockingIOError, SSLWantReadError or
SSLWantWriteError, as the socket does. The server sets limits and decides on answers.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import socket
import ssl
from http import HTTPStatus
from typing import Final

from sidecar.http.message import CONTINUE, Head, Refused, parse_head
from sidecar.units import KIB

HEAD_BYTES: Final = 8 * KIB
SMALL_BYTES: Final = 64 * KIB
"""A larger body has pages of its own, which go back to the kernel once it is answered. The
allocator would keep the memory of forty large bodies."""
_CHUNK_BYTES: Final = 64 * KIB
"""The most to read at once. A TLS record is smaller, so no selector misses the rest of one."""

Body = bytearray | mmap.mmap


class Phase(enum.Enum):
    """What a connection does."""

    HANDSHAKE = enum.auto()
    READING = enum.auto()  # a request, or waiting for one
    COMPUTING = enum.auto()  # the answer, in a route's thread
    WRITING = enum.auto()
    LINGERING = enum.auto()  # after a refusal


class ServedConnection:
    """One client.

    Args:
        connected: does not block. A TLS socket shakes hands first.
        deadline_s: see below.

    Attributes:
        deadline_s: when the connection is closed unless it got further (monotonic).
        events: what the selector waits for; 0 if it is not registered.
        head: of the request that is being read or answered.
        body: its body as it comes; None once it was taken.
        then: the phase after writing; None: the end.
        served: how many requests were answered.
    """

    def __init__(self, connected: socket.socket, deadline_s: float) -> None:
        secure = isinstance(connected, ssl.SSLSocket)
        self.socket = connected
        self.phase = Phase.HANDSHAKE if secure else Phase.READING
        self.deadline_s = deadline_s
        self.events = 0
        self.head: Head | None = None
        self.body: Body | None = None
        self.then: Phase | None = None
        self.served = 0
        self._body_bytes = 0  # how much of the body has come
        self._incoming = bytearray()  # bytes before or after a body
        self._outgoing = memoryview(b"")

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        return len(self._incoming) + self._body_bytes + len(self._outgoing)

    @property
    def is_silent(self) -> bool:
        """Whether nothing of a request has come."""
        return self.phase is Phase.READING and self.head is None and not self._incoming

    @property
    def has_hidden(self) -> bool:
        """Whether TLS already holds bytes of the next request, which no selector sees."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0

    def shake_hands(self) -> None:
        """Go on with the TLS handshake."""
        assert isinstance(self.socket, ssl.SSLSocket)
        self.socket.do_handshake()

    def receive(self) -> bool:
        """Take what has come; False once the client sends no more."""
        if self.body is None:
            data = self.socket.recv(_CHUNK_BYTES)
            self._incoming += data
            return bool(data)
        with memoryview(self.body) as view:
            end = self._body_bytes + _CHUNK_BYTES
            count = self.socket.recv_into(view[self._body_bytes : end])
        self._body_bytes += count
        return count > 0

    def take_head(self) -> Head | None:
        """The head once it has come; it stays in ``head``. Raises Refused."""
        end = self._incoming.find(b"\r\n\r\n", 0, HEAD_BYTES)
        if end < 0:
            if len(self._incoming) >= HEAD_BYTES:
                raise Refused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"the headers are longer than {HEAD_BYTES // KIB} KiB",
                )
            return None
        self.head = parse_head(bytes(self._incoming[:end]))
        del self._incoming[: end + 4]
        return self.head

    def expect_body(self, head: Head) -> None:
        """Make room for the body, and put into it what came with the head."""
        size = head.body_bytes
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.body = bytearray(size) if size <= SMALL_BYTES else mmap.mmap(-1, size, private)
        start = self._incoming[:size]
        self.body[: len(start)] = bytes(start)
        self._body_bytes = len(start)
        del self._incoming[:size]
        if head.waits and self._body_bytes < size:
            # A client that gets no 100 sends the body after a moment (RFC 9110, 10.1.1).
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self.socket.send(CONTINUE)

    def take_body(self) -> Body | None:
        """The body once it is whole. It counts as held until the answer is there."""
        if self.body is None or self._body_bytes < len(self.body):
            return None
        body, self.body = self.body, None
        return body

    def answer(self, data: bytes, then: Phase | None) -> None:
        """Queue an answer, and the phase after it. The last answer drops what came since."""
        self._outgoing = memoryview(data)
        self._body_bytes = 0
        self.then = then
        self.served += 1
        if then is not Phase.READING:
            self.body = None
            self._incoming.clear()

    def send(self) -> None:
        """Send the answer to its end."""
        while self._outgoing:
            sent_bytes = self.socket.send(self._outgoing[:_CHUNK_BYTES])
            self._outgoing = self._outgoing[sent_bytes:]
        self._outgoing = memoryview(b"")  # frees the answer
        self.head = None

    def say_goodbye(self) -> None:
        """Tell the client that nothing follows, without waiting for it."""
        with contextlib.suppress(OSError):
            if isinstance(self.socket, ssl.SSLSocket):
                self.socket.unwrap()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def discard(self) -> bool:
        """Throw away what comes after goodbye; False once the client has hung up."""
        return bool(socket.socket.recv(self.socket, _CHUNK_BYTES))  # not by TLS, which has ended
