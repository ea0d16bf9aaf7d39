"""A server that answers with bytes of the test's choice, as slowly as it says, HTTP or not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from tests.support.proxy import HOST, Head, read_body, read_head

Piece = bytes | float | None
"""What is sent, or for how many seconds nothing is; None: the connection is closed."""
Answer = Callable[[Head, bytes], Iterable[Piece]]


class RawServer:
    """Listens on loopback; each connection has a thread.

    Args:
        answer: called with each request and its body; the pieces of the answer. It may be endless.

    Attributes:
        requests: what was asked, by line.
        connections: how many there were.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0), backlog=64)
        self.requests: list[str] = []
        self.connections = 0

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

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
            self.connections += 1
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        with client, client.makefile("rb") as incoming:
            with contextlib.suppress(OSError, ValueError):
                while (request := read_head(incoming)) is not None:
                    self.requests.append(request.line)
                    if not self._send(client, self._answer(request, read_body(incoming, request))):
                        break
            with self._lock:
                self._open.discard(client)

    def _send(self, client: socket.socket, pieces: Iterable[Piece]) -> bool:
        """Whether the connection goes on."""
        for piece in pieces:
            if piece is None or self._ending.is_set():
                return False
            if isinstance(piece, float):
                self._ending.wait(piece)
            else:
                client.sendall(piece)
        return True
