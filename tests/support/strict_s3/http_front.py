"""HTTP/1.1 on loopback, a thread for each connection."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.strict_s3.limits import MIB

HOST = "127.0.0.1"
_PIECE_BYTES = MIB
_LINGER_AT_ONCE = struct.pack("ii", 1, 0)
_DRAIN_BYTES = 256 * MIB
_DRAIN_S = 2.0


class ClientGoneError(Exception):
    """The connection ended within a request."""


class HeadTooLargeError(Exception):
    """``line`` or ``headers`` are larger than allowed."""


class Extent(NamedTuple):
    """Bytes of a file."""

    path: Path
    offset: int
    size: int


class Body:
    """What a request brings; read once.

    Attributes:
        size: of Content-Length; None where the request has none.
        left: bytes that were not read yet.
    """

    def __init__(
        self, stream: BufferedReader[Any], size: int | None, invite: Callable[[], None]
    ) -> None:
        self._stream = stream
        self.size = size
        self.left = size or 0
        self._invite: Callable[[], None] | None = invite

    def read_into(self, view: memoryview) -> int:
        """How many bytes came, 0 at the end."""
        if self._invite is not None:
            self._invite()
            self._invite = None
        wanted = min(len(view), self.left)
        if not wanted:
            return 0
        count = self._stream.readinto(view[:wanted])
        if not count:
            raise ClientGoneError
        self.left -= count
        return count

    @property
    def invited(self) -> bool:
        """Whether the client was asked to send it, or sends it anyway."""
        return self._invite is None

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, fewer only at the end."""
        buffer = bytearray(min(size, self.left))
        filled = 0
        with memoryview(buffer) as view:
            while filled < len(buffer):
                filled += self.read_into(view[filled:])
        return bytes(buffer)


@dataclass
class Request:
    """One request.

    Attributes:
        path: as it was sent, with its escapes.
        query: likewise.
        headers: names in lower case; of several of one name the values, with commas between.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Body


@dataclass
class Answer:
    """What is sent back.

    Attributes:
        body: sent before ``extents``.
        extents: of files, sent without passing through this process.
        release: called when all is sent, or the client is gone.
        promised: Content-Length where it is not what is sent.
        truncate: send half of the body, and close.
        flip_bit: of the byte in the middle of the body.
        reset: send nothing, and reset the connection.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    extents: Sequence[Extent] = ()
    release: Callable[[], None] | None = None
    promised: int | None = None
    truncate: bool = False
    flip_bit: bool = False
    reset: bool = False

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body) + sum(extent.size for extent in self.extents)


class Handler:
    """What the front asks about each request; a service overrides it."""

    max_line_bytes = 8192
    max_head_bytes = 8192

    def handle(self, request: Request) -> Answer:
        """The answer. Every exception but ClientGoneError and OSError is a defect."""
        raise NotImplementedError

    def head_too_large(self, what: str) -> Answer:
        """The answer to a request whose ``line`` or ``headers`` are too large."""
        raise NotImplementedError

    def sending(self, size: int) -> None:
        """Called before ``size`` bytes of a body are sent; may wait."""


class Front:
    """Listens, and answers until the process ends."""

    def __init__(self, port: int, handler: Handler, host: str = HOST) -> None:
        self._handler = handler
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)

    def serve_forever(self) -> None:
        """Accept connections; each has a thread of its own."""
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ClientGoneError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with BufferedReader(socket.SocketIO(client, "r"), 64 * 1024) as stream:
                while self._one(client, stream):
                    pass

    def _one(self, client: socket.socket, stream: BufferedReader[Any]) -> bool:
        """Answer one request; whether the connection goes on."""
        try:
            request = self._read_request(client, stream)
        except HeadTooLargeError as error:
            self._send(client, "", self._handler.head_too_large(str(error)), close=True)
            self._linger(client)
            return False
        except ValueError:
            refusal = Answer(400, {"Content-Type": "text/plain"}, b"this is no HTTP/1.1\n")
            self._send(client, "", refusal, close=True)
            return False
        if request is None:
            return False
        answer = self._handler.handle(request)
        try:
            if answer.reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AT_ONCE)
                return False
            left = request.body.left
            # What is not read would be taken for the next request.
            unread = left > _DRAIN_BYTES or (left > 0 and not request.body.invited)
            close = unread or request.headers.get("connection", "").lower() == "close"
            if left and not unread:
                while request.body.read(_PIECE_BYTES):
                    pass
            self._send(client, request.method, answer, close=close)
        finally:
            if answer.release is not None:
                answer.release()
        if unread:
            self._linger(client)
        return not (close or answer.truncate)

    def _linger(self, client: socket.socket) -> None:
        """Let the client read the answer: closing with unread bytes would reset the connection."""
        client.shutdown(socket.SHUT_WR)
        client.settimeout(_DRAIN_S)
        end_s = time.monotonic() + _DRAIN_S
        while client.recv(_PIECE_BYTES) and time.monotonic() < end_s:
            pass

    def _read_request(self, client: socket.socket, stream: BufferedReader[Any]) -> Request | None:
        """None at the end of the connection. Raises HeadTooLargeError, ValueError."""
        handler = self._handler
        line = stream.readline(handler.max_line_bytes + 1)
        if not line:
            return None
        if len(line) > handler.max_line_bytes:
            raise HeadTooLargeError("line")
        method, target, version = line.decode("latin-1").split()
        if version != "HTTP/1.1":
            raise ValueError("another version of HTTP")
        headers: dict[str, str] = {}
        room = handler.max_head_bytes
        while (raw := stream.readline(room + 3)) not in {b"\r\n", b"\n"}:
            if not raw:
                raise ClientGoneError
            room -= len(raw)
            if room < 0:
                raise HeadTooLargeError("headers")
            name, colon, value = raw.decode("latin-1").partition(":")
            if not colon or name != name.strip():
                raise ValueError("no header")
            name, value = name.lower(), value.strip(" \t\r\n")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        path, _, query = target.partition("?")
        size = int(headers["content-length"]) if "content-length" in headers else None

        def invite() -> None:
            if headers.get("expect", "").lower() == "100-continue":
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

        body = Body(stream, size, invite)
        if "expect" not in headers:
            body.read_into(memoryview(b""))  # the client sends it unasked
        return Request(method, path, query, headers, body)

    def _send(self, client: socket.socket, method: str, answer: Answer, *, close: bool) -> None:
        without_body = method == "HEAD" or answer.status in {204, 304}
        size = answer.size
        headers = {"Date": formatdate(usegmt=True), "Server": "AmazonS3", **answer.headers}
        if answer.status not in {204, 304}:
            promised = size if answer.promised is None else answer.promised
            headers.setdefault("Content-Length", str(promised))
        if close:
            headers["Connection"] = "close"
        phrase = HTTPStatus(answer.status).phrase
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {answer.status} {phrase}\r\n{lines}\r\n".encode("latin-1")
        if without_body:
            client.sendall(head)
            return
        wanted = size // 2 if answer.truncate else size
        flip = size // 2 if answer.flip_bit and size else -1
        body = bytearray(answer.body[:wanted])
        if 0 <= flip < len(body):
            body[flip] ^= 1
        self._handler.sending(len(body))
        client.sendall(head + body)
        at = len(answer.body)
        for extent in answer.extents:
            self._send_extent(client, extent, wanted - at, flip - at)
            at += extent.size

    def _send_extent(self, client: socket.socket, extent: Extent, wanted: int, flip: int) -> None:
        end = extent.offset + min(extent.size, max(wanted, 0))
        at = extent.offset
        flip = extent.offset + flip if 0 <= flip < extent.size else -1
        with extent.path.open("rb", buffering=0) as file:
            while at < end:
                count = min(_PIECE_BYTES, end - at)
                self._handler.sending(count)
                if at <= flip < at + count:
                    piece = bytearray(os.pread(file.fileno(), count, at))
                    piece[flip - at] ^= 1
                    client.sendall(piece)
                    at += count
                    continue
                sent = os.sendfile(client.fileno(), file.fileno(), at, count)
                if not sent:
                    raise ClientGoneError
                at += sent
