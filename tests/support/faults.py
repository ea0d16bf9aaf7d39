"""A proxy between mount and store that breaks some requests, by a seed, and counts all.

It forwards bytes as they are, so signatures stay valid: a client signs for the proxy's
address, which the store sees in the ``Host`` header.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

HOST = "127.0.0.1"
ALL_FAULTS: Final = ("reset", "stall", "truncate", "delay", "500", "503", "429", "403")
_LINGER_AT_ONCE = struct.pack("ii", 1, 0)
_PIECE_BYTES = 256 * 1024
_CODES = {
    "500": "InternalError",
    "503": "SlowDown",
    "429": "TooManyRequests",
    "403": "AccessDenied",
}


class Head(NamedTuple):
    """First line and header fields of a request or an answer, and the bytes of both."""

    line: str
    fields: dict[str, str]
    raw: bytes


class FaultProxy:
    """Listens on loopback, forwards to ``port`` there.

    Args:
        rate: part of the requests that get a fault.
        faults: which, each as likely as the others.
        latency_s: added to every request; it may be changed.
        stall_s: how long a stalled connection is silent before it is closed.
        delay_s: how long a delayed answer is held back.

    Attributes:
        injected: how often each fault was.
        requests: how many there were, by method.
        body_bytes: bytes of answers' bodies that went to the client, by method.
    """

    def __init__(
        self,
        port: int,
        *,
        rate: float = 0.0,
        faults: Sequence[str] = ALL_FAULTS,
        seed: int = 0,
        latency_s: float = 0.0,
        stall_s: float = 30.0,
        delay_s: float = 0.3,
    ) -> None:
        self._upstream_port = port
        self.rate = rate
        self._faults = faults
        self._dice = random.Random(seed)
        self.latency_s = latency_s
        self._stall_s = stall_s
        self._delay_s = delay_s
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.body_bytes: Counter[str] = Counter()
        self._denied: set[str] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0), backlog=128)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        with self._lock:
            ends = [self._listener, *self._open]
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join(10)

    # --- connections ----------------------------------------------------------------------

    def _run(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """Requests of one connection, over one connection to the store."""
        with client, contextlib.ExitStack() as stack:
            upstream = socket.create_connection((HOST, self._upstream_port))
            stack.enter_context(upstream)
            with self._lock:
                self._open |= {client, upstream}
            try:
                incoming = stack.enter_context(client.makefile("rb"))
                answers = stack.enter_context(upstream.makefile("rb"))
                while not self._ending.is_set() and self._one(client, incoming, upstream, answers):
                    pass
            except (OSError, ValueError):
                return  # either side went away
            finally:
                with self._lock:
                    self._open -= {client, upstream}

    def _one(
        self,
        client: socket.socket,
        incoming: BinaryIO,
        upstream: socket.socket,
        answers: BinaryIO,
    ) -> bool:
        """One request; whether the connection goes on."""
        request = _read_head(incoming)
        if request is None:
            return False
        body = _read_body(incoming, request)
        method, target, _ = request.line.split(" ", 2)
        fault = self._draw(method, target)
        if self.latency_s:
            time.sleep(self.latency_s)
        if fault in _CODES:
            client.sendall(_refusal(fault))
            return True
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AT_ONCE)
            return False
        if fault == "stall":
            self._ending.wait(self._stall_s)
            return False
        if fault == "delay":
            self._ending.wait(self._delay_s)
        upstream.sendall(request.raw + body)
        answer = _read_head(answers)
        if answer is None:
            return False
        client.sendall(answer.raw)
        status = int(answer.line.split(" ", 2)[1])
        if method == "HEAD" or status in {204, 304}:
            return True
        if "chunked" in answer.fields.get("transfer-encoding", ""):
            client.sendall(_read_chunks(answers))
            return True
        return self._relay(client, answers, int(answer.fields["content-length"]), method, fault)

    def _relay(
        self, client: socket.socket, answers: BinaryIO, length: int, method: str, fault: str
    ) -> bool:
        wanted = length // 2 if fault == "truncate" else length
        while wanted:
            piece = answers.read(min(wanted, _PIECE_BYTES))
            if not piece:
                return False
            client.sendall(piece)
            wanted -= len(piece)
            with self._lock:
                self.body_bytes[method] += len(piece)
        return fault != "truncate"

    def _draw(self, method: str, target: str) -> str:
        with self._lock:
            self.requests[method] += 1
            if self._dice.random() >= self.rate:
                return ""
            fault = self._dice.choice(self._faults)
            path = target.partition("?")[0]
            if fault == "403":
                # Two in a row on one object would be a refusal and not a fault.
                if path in self._denied:
                    return ""
                self._denied.add(path)
            self.injected[fault] += 1
            return fault


def _read_head(stream: BinaryIO) -> Head | None:
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


def _read_body(stream: BinaryIO, head: Head) -> bytes:
    if "chunked" in head.fields.get("transfer-encoding", ""):
        return _read_chunks(stream)
    return stream.read(int(head.fields.get("content-length", "0")))


def _read_chunks(stream: BinaryIO) -> bytes:
    raw = b""
    while True:
        line = stream.readline()
        raw += line
        size = int(line.partition(b";")[0], 16)
        raw += stream.read(size + 2) if size else stream.readline()
        if not size:
            return raw


def _refusal(status: str) -> bytes:
    body = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>".encode()
    return (
        f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
