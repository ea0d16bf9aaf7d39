"""HTTP/1.1 on one keep-alive connection, with few system calls. Retries nothing (RFC 9112).

Half of the CPU time of a small GET through :mod:`http.client` is the library's: an e-mail parser
for the header, a buffered file around each response, a poll(2) before each recv(2). Here a
request is one send. The first recv brings the response's head. The body goes from the kernel to
the caller's memory in one call, however long it is (MSG_WAITALL): the socket blocks, and the
kernel limits the time (SO_RCVTIMEO).
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import string
import struct
from collections.abc import Iterator, Mapping
from http import HTTPStatus

from sidecar.units import KIB

_HEAD_BYTES = 4096
"""Received at first: a head, and little of the body, because that is copied again."""
_MAX_HEAD_BYTES = 64 * KIB
_END_OF_HEAD = b"\r\n\r\n"
_TIMEVAL = struct.Struct("@ll")


class BrokenResponse(Exception):
    """The response is not HTTP, or not whole."""


class Headers(dict[str, str]):
    """Header fields by lower-case name; of a repeated field the last counts."""


class Connection:
    """A connection, used by one thread at a time.

    Args:
        host: name or address.
        tls: checks the server's certificate; None for plain TCP.
        timeout_s: as :meth:`set_timeout`; also for connecting.

    Attributes:
        is_tls: whether data is encrypted in user space.

    Raises:
        OSError: refused, not resolved, not trusted, too slow.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        self.is_tls = tls is not None
        self._socket = socket.create_connection((host, port), timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
            else:
                self._socket.settimeout(None)  # the kernel's time limit instead
        except BaseException:
            self._socket.close()
            raise
        self._timeout_s = 0.0
        self.set_timeout(timeout_s)
        self._left = memoryview(b"")  # received, and not taken yet

    def set_timeout(self, timeout_s: float) -> None:
        """For how long the server may neither send nor take anything before TimeoutError."""
        if timeout_s == self._timeout_s:
            return
        self._timeout_s = timeout_s
        if self.is_tls:
            self._socket.settimeout(timeout_s)
            return
        fraction, seconds = math.modf(timeout_s)
        limit = _TIMEVAL.pack(int(seconds), int(fraction * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise TimeoutError("the server takes no more") from None

    @contextlib.contextmanager
    def unblocked(self) -> Iterator[tuple[socket.socket, float]]:
        """The socket, not blocking, for sendfile(2) and poll(2), and the time limit in seconds.

        Plain TCP only.
        """
        self._socket.setblocking(False)
        try:
            yield self._socket, self._timeout_s
        finally:
            self._socket.setblocking(True)

    def response(self, *, has_body: bool = True) -> Response:
        """The response, its body not read yet. Raises OSError, BrokenResponse.

        Args:
            has_body: False for HEAD, whose response has the fields of a GET's.
        """
        while (response := Response(self._head(), self)).status < HTTPStatus.OK:
            pass
        if not has_body:
            response.length = 0
        return response

    def receive(self, buffer: memoryview) -> int:
        """Fill the buffer. Returns fewer bytes if the server ends or stalls in the middle."""
        count = self._take(buffer)
        if count == len(buffer):
            return count
        if self.is_tls:
            return self._decrypt(buffer, count)
        try:
            return count + self._socket.recv_into(buffer[count:], 0, socket.MSG_WAITALL)
        except BlockingIOError:
            if count:
                return count
            raise _silent() from None

    def line(self) -> bytes:
        """The next line of a body's framing, without its end."""
        line = bytearray()
        byte = memoryview(bytearray(1))
        while not line.endswith(b"\r\n"):
            if len(line) > _HEAD_BYTES or not self.receive(byte):
                raise BrokenResponse("a line does not end")
            line += byte
        return bytes(line[:-2])

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _take(self, buffer: memoryview) -> int:
        count = min(len(self._left), len(buffer))
        if count:
            buffer[:count] = self._left[:count]
            self._left = self._left[count:]
        return count

    def _decrypt(self, buffer: memoryview, count: int) -> int:
        """Fill the buffer from ``count`` on, record by record, until the server stalls."""
        try:
            while count < len(buffer) and (more := self._socket.recv_into(buffer[count:])):
                count += more
        except TimeoutError:
            if not count:
                raise
        return count

    def _head(self) -> bytes:
        """Status line and header fields."""
        received = bytes(self._left)
        while (end := received.find(_END_OF_HEAD)) < 0:
            if len(received) > _MAX_HEAD_BYTES:
                raise BrokenResponse("the header does not end")
            try:
                more = self._socket.recv(_HEAD_BYTES)
            except BlockingIOError:
                raise _silent() from None
            if not more:
                raise ConnectionResetError("the server closed the connection")
            received = received + more if received else more
        self._left = memoryview(received)[end + len(_END_OF_HEAD) :]
        return received[:end]


class Response:
    """A response that is being read: status and fields, then the body.

    Attributes:
        status: a number of RFC 9110.
        fields: the header.
        length: bytes of the body that are still to come; None if that is not known.
        chunked: whether the body comes in chunks.
        will_close: whether the connection cannot be used again.
    """

    __slots__ = ("_connection", "_in_chunk", "chunked", "fields", "length", "status", "will_close")

    def __init__(self, head: bytes, connection: Connection) -> None:
        self._connection = connection
        self._in_chunk = 0
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        number = rest[:3]
        if not version.startswith("HTTP/1.") or not number.isdecimal() or rest[3:4].strip():
            raise BrokenResponse("not an HTTP/1 status line")
        self.status = int(number)
        self.fields = fields = Headers()
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise BrokenResponse("broken header")
            fields[name.lower()] = value.strip(" \t")  # other spaces may be bytes of UTF-8
        self.chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        length = fields.get("content-length", "")
        if length and not length.isdecimal():
            raise BrokenResponse("a length that is no number")
        self.length = int(length) if length and not self.chunked else None
        if self.status in _WITHOUT_BODY:
            self.length = 0
        says = fields.get("connection", "").lower()
        self.will_close = (
            "close" in says
            or (version == "HTTP/1.0" and "keep-alive" not in says)
            or (not self.chunked and self.length is None)
        )

    @property
    def is_read(self) -> bool:
        """Whether the body was read to its end."""
        return self.length == 0

    def readinto(self, buffer: memoryview) -> int:
        """Read the body's next bytes. Returns how many; 0 at its end, which may be early."""
        if self.length == 0:
            return 0
        if self.chunked and not self._in_chunk and not self._next_chunk():
            return 0
        left = self._in_chunk if self.chunked else self.length
        if left is not None:
            buffer = buffer[:left]
        count = self._connection.receive(buffer)
        if self.chunked:
            self._in_chunk -= count
            if not count:
                raise BrokenResponse("a chunk ended early")
            if not self._in_chunk:
                self._connection.line()
        elif self.length is not None:
            self.length -= count
        return count

    def read(self, most_bytes: int) -> bytes:
        """The rest of the body, at most ``most_bytes``."""
        size = most_bytes if self.length is None else min(self.length, most_bytes)
        body = bytearray()
        block = memoryview(bytearray(min(size, _MAX_HEAD_BYTES)))
        while len(body) < size:
            count = self.readinto(block[: size - len(body)])
            if not count:
                break
            body += block[:count]
        return bytes(body)

    def _next_chunk(self) -> bool:
        size = self._connection.line().partition(b";")[0].strip()
        if not size or size.strip(string.hexdigits.encode()):
            raise BrokenResponse("a chunk has no size")
        self._in_chunk = int(size, 16)
        if self._in_chunk:
            return True
        while self._connection.line():
            pass  # fields behind the body
        self.length = 0
        return False


_WITHOUT_BODY = frozenset((HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED))


def request_head(method: str, target: str, headers: Mapping[str, str], host: str) -> bytes:
    """The request line and header. ``host`` is used unless ``headers`` has one.

    Raises ValueError for a line break, which would begin another request.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in headers:
        lines.append(f"host: {host}")
    if "accept-encoding" not in headers:
        lines.append("accept-encoding: identity")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or target.count(" "):
        raise ValueError("a line break in a request")
    return f"{text}\r\n\r\n".encode("latin-1")


def _silent() -> TimeoutError:
    """What EAGAIN means on a blocking socket: its time limit is over."""
    return TimeoutError("the server is silent")


TRANSPORT_ERRORS: tuple[type[Exception], ...] = (OSError, BrokenResponse)
"""What a request on a connection raises: refused, reset, timed out, not resolved, not trusted,
no HTTP."""
