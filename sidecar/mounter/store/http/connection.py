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
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus

from sidecar.mounter.store.http.addresses import Address
from sidecar.mounter.store.http.fields import BrokenResponse, parse_fields
from sidecar.mounter.store.http.flow import Turn
from sidecar.mounter.store.http.timeouts import Deadline
from sidecar.mounter.store.http.values import parse_hex_number, parse_number
from sidecar.units import KIB, MIB

_HEAD_BYTES = 4096
"""Received at first: a head, and little of the body, because body bytes here are copied again."""
_MAX_HEAD_BYTES = 64 * KIB
"""The longest head, and trailer. No store takes a tenth of it as metadata."""
_MAX_FRAMING_BYTES = KIB
"""The longest line with a chunk's size."""
_MAX_CHUNK_DIGITS = 16
_MAX_INTERIM = 100
"""The most interim responses before the final one."""
_SEND_BYTES = MIB
_END_OF_HEAD = b"\r\n\r\n"
_TIMEVAL = struct.Struct("@ll")
_BYTES_ACKED_AT = 120
"""``tcpi_bytes_acked`` in ``struct tcp_info`` (include/uapi/linux/tcp.h), since Linux 4.1."""


class TruncatedResponse(BrokenResponse):
    """The response ended early."""


class UnsendableRequest(Exception):
    """A value that no request can hold, such as a line break from a store's document."""


class Connection:
    """A connection, used by one thread at a time, for one attempt after the other.

    Args:
        sock: connected; closed with the connection.
        address: of the other end.
        timeout_s, limit_s: as for :meth:`begin`.

    Attributes:
        address: of the other end.
        is_tls: whether data is encrypted in user space.
        deadline: of this attempt.
        idle_since_s: when an answer on it was last read to its end (monotonic); 0: never.
        descriptor: of its socket.
    """

    def __init__(
        self, sock: socket.socket, address: Address, timeout_s: float, limit_s: float
    ) -> None:
        self.address = address
        self.idle_since_s = 0.0
        self.descriptor = sock.fileno()
        self.is_tls = isinstance(sock, ssl.SSLSocket)
        self._socket = sock
        if not self.is_tls:
            sock.settimeout(None)  # the kernel's time limit instead
        self._timeout_s = 0.0
        self._left = memoryview(b"")  # received, not taken yet
        self._arrival = select.poll()
        self._arrival.register(sock, select.POLLIN)
        self.deadline = Deadline()
        self.begin(timeout_s, limit_s)

    def begin(self, timeout_s: float, limit_s: float) -> None:
        """Begin an attempt.

        Args:
            timeout_s: how long the server may neither send nor take anything before TimeoutError.
            limit_s: how long it may do so without progress (:class:`Deadline`).
        """
        self.deadline.begin(limit_s)
        self._turn: Turn | None = None
        self._is_slow = False  # whether the same wait has timed out once already
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

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came after the last response: neither bytes nor the end.

        Such bytes would be taken for the next response.
        """
        if self._left:
            return False
        if not self._arrival.poll(0):
            return not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending())
        with contextlib.suppress(OSError):
            return self._receive_now() is None
        return False

    def answers_within(self, seconds: float) -> bool:
        """Whether the answer begins, or the connection ends, within ``seconds``."""
        if not self.is_tls:
            return bool(self._arrival.poll(seconds * 1000))
        ends_s = time.monotonic() + seconds
        while self._arrival.poll(max(0.0, ends_s - time.monotonic()) * 1000):
            if self.has_answer():
                return True
        return False

    def has_answer(self) -> bool:
        """Whether the answer has begun. Raises OSError if there will be none."""
        received = self._receive_now()
        if received is None:
            return False
        if not received:
            raise _ended()
        self._left = memoryview(received)
        return True

    def rest(self) -> None:
        """Note that the answer was read to its end."""
        if isinstance(self._socket, ssl.SSLSocket) and not self.idle_since_s:
            self.address.session = self._socket.session  # tickets come with the first answer
        self.idle_since_s = time.monotonic()

    def begin_body(self, turn: Turn) -> None:
        """From now on silence ends the attempt only if nothing is acknowledged meanwhile.

        Before its ``turn``, acknowledgements of other bodies count, too.
        """
        self._turn = turn
        self._acked_bytes = self._acknowledged_bytes()

    def is_moving(self) -> bool:
        """Whether the body moved since the last call. Raises as :meth:`Deadline.check`."""
        if self._turn is None:
            return False
        before, self._acked_bytes = self._acked_bytes, self._acknowledged_bytes()
        self.deadline.moved(self._acked_bytes - before)
        if self._turn.gets_nearer():
            self.deadline.renew()
        elif self._acked_bytes == before:
            return False
        self.deadline.check()
        return True

    def _acknowledged_bytes(self) -> int:
        size = _BYTES_ACKED_AT + 8
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        return int.from_bytes(info[_BYTES_ACKED_AT:], sys.byteorder)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        count = 0 if len(data) > _SEND_BYTES else self._send_some(data)
        while count < len(data):
            self.deadline.check()
            more = self._send_some(memoryview(data)[count : count + _SEND_BYTES])
            self.deadline.moved(more)
            count += more

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
        self.deadline.renew()
        response = Response(self._head(), self)
        if response.status < HTTPStatus.OK:
            response = self._final()
        if not has_body:
            response.length = 0
        return response

    def _final(self) -> Response:
        """The final response, after interim ones."""
        for _ in range(_MAX_INTERIM):
            self.deadline.check()
            response = Response(self._head(), self)
            if response.status >= HTTPStatus.OK:
                return response
        raise BrokenResponse("interim responses without an end")

    def receive(self, buffer: memoryview) -> int:
        """Fill the buffer. Returns fewer bytes if the server ends or stalls in the middle."""
        count = self._take(buffer)
        if count < len(buffer):
            if self._is_slow:
                self.deadline.check()
            count = self._receive_rest(buffer, count)
            self._is_slow = count < len(buffer)
        self.deadline.moved(count)
        return count

    def line(self) -> bytes:
        """The next line of a body's framing, without its end."""
        left = bytes(self._left)
        while (end := left.find(b"\r\n")) < 0:
            if len(left) > _MAX_FRAMING_BYTES or not (more := self._receive_some()):
                raise BrokenResponse("a line does not end")
            left += more
        if end > _MAX_FRAMING_BYTES:
            raise BrokenResponse("a line is too long")
        self._left = memoryview(left)[end + 2 :]
        return left[:end]

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _send_some(self, data: bytes | memoryview) -> int:
        while True:
            try:
                return self._socket.send(data)
            except (BlockingIOError, TimeoutError):
                if not self.is_moving():
                    raise TimeoutError("the server takes no more") from None

    def _take(self, buffer: memoryview) -> int:
        count = min(len(self._left), len(buffer))
        if count:
            buffer[:count] = self._left[:count]
            self._left = self._left[count:]
        return count

    def _receive_rest(self, buffer: memoryview, count: int) -> int:
        """Fill the buffer from ``count`` on; how many bytes are in it then."""
        if self.is_tls:
            return self._decrypt(buffer, count)
        try:
            return count + self._socket.recv_into(buffer[count:], 0, socket.MSG_WAITALL)
        except BlockingIOError:
            if count:
                return count
            raise silent() from None

    def _decrypt(self, buffer: memoryview, count: int) -> int:
        """Fill the buffer from ``count`` on, record by record, until the server stalls."""
        try:
            while count < len(buffer) and (more := self._socket.recv_into(buffer[count:])):
                count += more
                if self.deadline.is_over:
                    break  # the caller tells the deadline about them, and asks for the rest
        except TimeoutError:
            if not count:
                raise
        return count

    def _receive_some(self) -> bytes:
        """The next bytes, which are no content; empty at the end of the connection."""
        if self._is_slow:
            self.deadline.check()
        self._is_slow = True
        while True:
            try:
                return self._socket.recv(_HEAD_BYTES)
            except (BlockingIOError, TimeoutError):
                if not self.is_moving():
                    raise silent() from None

    def _receive_now(self) -> bytes | None:
        """Bytes that are there and are no content; None: nothing, or only TLS's own messages."""
        try:
            if not self.is_tls:
                return self._socket.recv(_HEAD_BYTES, socket.MSG_DONTWAIT)
            self._socket.settimeout(0)
            try:
                return self._socket.recv(_HEAD_BYTES)
            finally:
                self._socket.settimeout(self._timeout_s)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None

    def _head(self) -> bytes:
        """Status line and header fields."""
        received = bytes(self._left)
        while (end := received.find(_END_OF_HEAD)) < 0:
            if len(received) > _MAX_HEAD_BYTES:
                raise BrokenResponse("the header does not end")
            more = self._receive_some()
            if not more:
                raise _ended()
            received = received + more if received else more
        self._left = memoryview(received)[end + len(_END_OF_HEAD) :]
        self._is_slow = False
        return received[:end]


class Response:
    """A response that is being read: status and fields, then the body.

    Attributes:
        status: a number of RFC 9110.
        fields: the header. No value has a line break or a NUL.
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
        if version not in {"HTTP/1.1", "HTTP/1.0"} or rest[3:4].strip(" "):
            raise BrokenResponse("not an HTTP/1 status line")
        self.status = _STATUSES.get(rest[:3], 0)
        if not self.status:
            raise BrokenResponse("not a status of HTTP/1")
        self.fields = fields = parse_fields(head, lines)
        coding, length = fields.get("transfer-encoding"), fields.get("content-length")
        self.chunked = coding is not None
        self.length = None
        if coding is not None and (coding.lower() != "chunked" or length is not None):
            # Two readers could disagree about where such a body ends.
            raise BrokenResponse("a transfer coding that is not understood")
        if length is not None:
            try:
                self.length = parse_number(length)
            except ValueError:
                raise BrokenResponse("a length that is no number") from None
        if self.status in _WITHOUT_BODY:
            self.length = 0
        says = fields.get("connection", "").lower()
        self.will_close = (
            "close" in says
            or (version == "HTTP/1.0" and (self.chunked or "keep-alive" not in says))
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
                raise TruncatedResponse("a chunk ended early")
            if not self._in_chunk and self._connection.line():
                raise BrokenResponse("a chunk is longer than it says")
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

    def read_all(self, most_bytes: int) -> bytes:
        """The whole body.

        Raises:
            BrokenResponse: it is longer than ``most_bytes``, or ended early.
        """
        body = self.read(most_bytes + 1)
        if len(body) > most_bytes:
            raise BrokenResponse(f"longer than {most_bytes} bytes")
        if self.length:  # bytes are missing
            raise TruncatedResponse("the body ended early")
        return body

    def _next_chunk(self) -> bool:
        size = self._connection.line().partition(b";")[0].strip(b" \t")
        try:
            self._in_chunk = parse_hex_number(size.decode("latin-1"), _MAX_CHUNK_DIGITS)
        except ValueError:
            raise BrokenResponse("a chunk has no size") from None
        if self._in_chunk:
            return True
        behind_bytes = 0
        while field := self._connection.line():  # the trailer
            behind_bytes += len(field) + 2
            if behind_bytes > _MAX_HEAD_BYTES:
                raise BrokenResponse("the fields behind a body do not end")
        self.length = 0
        return False


_STATUSES = {str(status): status for status in range(100, 1000) if status != 101}
"""Without the switch to another protocol, which nobody asks for."""
_WITHOUT_BODY = frozenset((HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED))


def request_head(method: str, target: str, headers: Mapping[str, str], host: str) -> bytes:
    """The request line and header. ``host`` is used unless ``headers`` has one.

    Raises:
        UnsendableRequest: there is a line break, which would begin another request, or a surrogate,
            which stands for no byte.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in headers:
        lines.append(f"host: {host}")
    if "accept-encoding" not in headers:
        lines.append("accept-encoding: identity")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    ends = len(lines) - 1
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text or " " in target:
        raise UnsendableRequest("a control character")
    try:
        return f"{text}\r\n\r\n".encode("latin-1")
    except UnicodeEncodeError:
        raise UnsendableRequest("a character that is no byte") from None


def first_to_answer(one: Connection, other: Connection, seconds: float) -> Connection:
    """The one of two connections with the same request whose answer begins first.

    Receives nothing of a body, which somebody else could be receiving.

    Raises:
        OSError: none begins within ``seconds``.
    """
    ends_s = time.monotonic() + seconds
    waiting = {connection.descriptor: connection for connection in (one, other)}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while events := poll.poll(max(0.0, ends_s - time.monotonic()) * 1000):
        for descriptor, _ in events:
            try:
                if waiting[descriptor].has_answer():
                    return waiting[descriptor]
            except OSError:
                poll.unregister(descriptor)
                del waiting[descriptor]
                if not waiting:
                    raise
    raise silent()


def _ended() -> ConnectionResetError:
    return ConnectionResetError("the server closed the connection")


def silent() -> TimeoutError:
    """The error for EAGAIN on a blocking socket: its time limit is over."""
    return TimeoutError("the server is silent")


TRANSPORT_ERRORS: tuple[type[Exception], ...] = (OSError, BrokenResponse, UnsendableRequest)
"""Errors of a request on a connection: refused, reset, timed out, not resolved, not trusted, no
HTTP in either direction."""
