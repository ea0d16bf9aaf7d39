"""An HTTP proxy as companies have them (CONNECT, and forwarding), and TLS before a server without.

Both listen on loopback and reach loopback alone.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from urllib.parse import urlsplit

from tests.support.servers import TlsFiles
from tests.support.threaded_server import HOST, ThreadedServer

_PIECE_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 64 * 1024


class _Relay(ThreadedServer):
    """Copies bytes between two connections."""

    def _relay(self, one: socket.socket, other: socket.socket) -> None:
        """Relay until both have ended; close them."""
        with self._lock:
            self._open |= {one, other}
        back = threading.Thread(target=self._copy, args=(other, one), daemon=True)
        back.start()
        self._copy(one, other)
        back.join()
        with self._lock:
            self._open -= {one, other}
        one.close()
        other.close()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                target.sendall(piece)
        for end, how in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
            with contextlib.suppress(OSError):
                # Not SSLSocket's: after that, the other thread would receive TLS as plain bytes.
                socket.socket.shutdown(end, how)


class ForwardProxy(_Relay):
    """The proxy.

    Args:
        login: ``user:password`` that it requires, or None.

    Attributes:
        asked: what it was asked for: ``CONNECT host:port``, ``GET http://...``.
        refuses: a status that it answers everything with, or None.
    """

    def __init__(self, login: str | None = None, *, port: int = 0) -> None:
        super().__init__(port)
        self._wanted = None
        if login is not None:
            self._wanted = f"Basic {base64.b64encode(login.encode()).decode()}"
        self.asked: list[str] = []
        self.refuses: int | None = None

    def _serve(self, client: socket.socket) -> None:
        head = _read_head(client)
        if head is None:
            client.close()
            return
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ", 2)
        self.asked.append(f"{method} {target}")
        logins = [f for f in fields if f.lower().startswith("proxy-authorization:")]
        given = logins[0].partition(":")[2].strip() if logins else None
        status = self.refuses or (407 if self._wanted not in (None, given) else None)
        if status is not None:
            client.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
            client.close()
            return
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            upstream = socket.create_connection((host, int(port)), 10)
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            parts = urlsplit(target)
            upstream = socket.create_connection((parts.hostname, parts.port or 80), 10)
            path = target.removeprefix(f"{parts.scheme}://{parts.netloc}") or "/"
            kept = [
                f for f in fields if f not in logins and not f.lower().startswith("connection:")
            ]
            lines = [f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]
            upstream.sendall("\r\n".join(lines).encode("latin-1"))
        self._relay(client, upstream)


class TlsFront(_Relay):
    """TLS before a server on loopback.

    Attributes:
        context: of its connections.
        went_on: of each connection, whether it went on with an earlier one's session.
    """

    def __init__(self, upstream_port: int, tls: TlsFiles, host: str = HOST) -> None:
        super().__init__(0, host)
        self._upstream_port = upstream_port
        self.context = tls.server_context()
        self.went_on: list[bool] = []

    @property
    def endpoint(self) -> str:
        """``https://127.0.0.1:port``."""
        return f"https://{HOST}:{self.port}"

    def _serve(self, client: socket.socket) -> None:
        try:
            secured = self.context.wrap_socket(client, server_side=True)
        except OSError:  # a client that does not trust it
            client.close()
            return
        self.went_on.append(bool(secured.session_reused))
        self._relay(secured, socket.create_connection((HOST, self._upstream_port), 10))


def _read_head(client: socket.socket) -> str | None:
    """A request's head, and nothing behind it; None if the client ended."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte or len(head) > _MAX_HEAD_BYTES:
            return None
        head += byte
    return head[:-4].decode("latin-1")
