"""A server that answers with bytes of the test's choice, as slowly as it says, HTTP or not."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable

from tests.support.proxy import Head, read_body, read_head
from tests.support.threaded_server import HOST, ThreadedServer

Piece = bytes | float | None
"""What is sent, or for how many seconds nothing is; None: the connection is closed."""
Answer = Callable[[Head, bytes], Iterable[Piece]]


class RawServer(ThreadedServer):
    """Answers each request of each connection.

    Args:
        answer: called with each request and its body; the pieces of the answer. It may be endless.
        port, host: as :class:`ThreadedServer`.

    Attributes:
        requests: what was asked, by line.
        connections: how many there were.
    """

    def __init__(self, answer: Answer, port: int = 0, host: str = HOST) -> None:
        super().__init__(port, host)
        self._answer = answer
        self.requests: list[str] = []
        self.connections = 0

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
            self.connections += 1
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
