"""A proxy on loopback that forwards HTTP/1.1 unchanged; subclasses change requests or answers."""

from __future__ import annotations

import contextlib
import socket
from typing import BinaryIO, NamedTuple

from tests.support.threaded_server import HOST, ThreadedServer

_PIECE_BYTES = 256 * 1024


class Head(NamedTuple):
    """First line and header fields of a request or an answer, parsed and as bytes."""

    line: str
    fields: dict[str, str]
    raw: bytes

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.line.split(" ", 1)[0]

    @property
    def target(self) -> str:
        """Path and query of a request."""
        return self.line.split(" ", 2)[1]

    @property
    def status(self) -> int:
        """The status of an answer."""
        return int(self.line.split(" ", 2)[1])


class Ends(NamedTuple):
    """The sockets to the client and to the store."""

    client: socket.socket
    upstream: socket.socket
    answers: BinaryIO


class Proxy(ThreadedServer):
    """Forwards complete requests to ``upstream_port`` on loopback.

    Args:
        port: to listen on; a free one by default.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        super().__init__(port)
        self._upstream_port = upstream_port

    def exchange(self, request: Head, body: bytes, ends: Ends) -> bool:
        """Forward one request; whether to keep the connection. Subclasses override it."""
        return self.forward(request.method, request.raw + body, ends)

    def forward(
        self,
        method: str,
        request: bytes,
        ends: Ends,
        *,
        truncate: bool = False,
        behind: bytes = b"",
    ) -> bool:
        """Send a request on, and its answer back; whether the connection goes on.

        Args:
            truncate: the answer's body is cut in half.
            behind: sent with the last bytes of the answer.
        """
        ends.upstream.sendall(request)
        answer = read_head(ends.answers)
        while answer is not None and answer.status == 100:
            answer = read_head(ends.answers)
        if answer is None:
            return False
        has_body = method != "HEAD" and answer.status not in {204, 304}
        is_chunked = "chunked" in answer.fields.get("transfer-encoding", "")
        length = 0 if is_chunked or not has_body else int(answer.fields["content-length"])
        chunks = read_chunks(ends.answers) if is_chunked and has_body else b""
        ends.client.sendall(answer.raw + (b"" if length else chunks + behind))
        wanted = length // 2 if truncate else length
        while wanted:
            piece = ends.answers.read(min(wanted, _PIECE_BYTES))
            if not piece:
                return False
            wanted -= len(piece)
            ends.client.sendall(piece if wanted else piece + behind)
            self.passed(method, len(piece))
        return not truncate

    def passed(self, method: str, size: int) -> None:
        """Called for each piece of an answer's body sent to the client."""

    def _serve(self, client: socket.socket) -> None:
        """Serve a client's connection over one connection to the store."""
        with client, contextlib.ExitStack() as stack:
            try:
                upstream = socket.create_connection((HOST, self._upstream_port))
            except OSError:
                return  # The store is down.
            stack.enter_context(upstream)
            with self._lock:
                self._open |= {client, upstream}
            try:
                incoming = stack.enter_context(client.makefile("rb"))
                ends = Ends(client, upstream, stack.enter_context(upstream.makefile("rb")))
                while not self._ending.is_set() and self._one(incoming, ends):
                    pass
            except (OSError, ValueError):
                return  # One side closed.
            finally:
                with self._lock:
                    self._open -= {client, upstream}

    def _one(self, incoming: BinaryIO, ends: Ends) -> bool:
        request = read_head(incoming)
        if request is None:
            return False
        if request.fields.get("expect", "").lower() == "100-continue":
            ends.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self.exchange(request, read_body(incoming, request), ends)


def read_head(stream: BinaryIO) -> Head | None:
    """First line and header fields; None at the end of the connection."""
    raw = line = stream.readline()
    if not line:
        return None
    fields: dict[str, str] = {}
    while True:
        field = stream.readline()
        raw += field
        if field in {b"\r\n", b"\n", b""}:
            return Head(line.decode("latin-1").rstrip(), fields, raw)
        name, _, value = field.decode("latin-1").partition(":")
        fields[name.lower()] = value.strip()


def read_body(stream: BinaryIO, head: Head) -> bytes:
    """The body as sent, with its chunk framing. Raises ValueError if the connection ends early."""
    if "chunked" in head.fields.get("transfer-encoding", ""):
        return read_chunks(stream)
    length = int(head.fields.get("content-length", "0"))
    body = stream.read(length)
    if len(body) < length:
        raise ValueError("the connection ended within a body")
    return body


def read_chunks(stream: BinaryIO) -> bytes:
    """A chunked body with its framing."""
    raw = b""
    while True:
        line = stream.readline()
        raw += line
        size = int(line.partition(b";")[0], 16)
        raw += stream.read(size + 2) if size else stream.readline()
        if not size:
            return raw


def plain_body(stream: BinaryIO, head: Head) -> bytes:
    """The body of an answer, without the framing of its chunks."""
    if head.status in {204, 304}:
        return b""
    raw = read_body(stream, head)
    if "chunked" not in head.fields.get("transfer-encoding", ""):
        return raw
    body = b""
    while raw:
        line, _, rest = raw.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        body, raw = body + rest[:size], rest[size + 2 :]
    return body


def http_answer(status: int, phrase: str, body: bytes = b"", **fields: str) -> bytes:
    """A complete answer; ``_`` in a field's name stands for ``-``."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    head = f"HTTP/1.1 {status} {phrase}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body
