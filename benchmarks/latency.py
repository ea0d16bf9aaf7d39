"""A TCP proxy that adds latency to every answer, run as a program.

``python -m benchmarks.latency TARGET_HOST:PORT DELAY_S [MB_S]`` prints ``listening HOST:PORT``. It
delays the first bytes of each answer by DELAY_S: the cost of one round trip for each request on an
open connection. With MB_S, the answers of all connections together have that bandwidth. Without it,
bandwidth is close to loopback's, since bytes are copied inside the kernel (splice(2)). Benchmarks
also measure the floor client through a proxy without delay, as the bandwidth to compare with.

An answer begins with the first bytes from the server after bytes from the client. This holds
for HTTP/1.1 without pipelining, also inside TLS (whose handshake is delayed, too).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from pathlib import Path

from benchmarks.processes import Child
from sidecar.units import MIB

_HOST = "127.0.0.1"
_PIPE_BYTES = MIB
_REQUEST_BYTES = 256 * 1024
_START_TIMEOUT_S = 30.0


@contextmanager
def proxy(target: str, delay_s: float, log: Path, mb_s: float = 0.0) -> Iterator[str]:
    """Run a proxy in front of ``target`` (host:port); yields the proxy's address.

    Args:
        mb_s: bandwidth of all connections together, in MB/s; 0: no limit.

    Raises:
        BenchFailure: it does not start.
    """
    argv = [sys.executable, "-m", "benchmarks.latency", target, str(delay_s), str(mb_s)]
    with Child(argv, {}, log) as child:
        child.wait_until(
            lambda: child.log.read_text().endswith("\n"), "proxy: listening", _START_TIMEOUT_S
        )
        yield child.log.read_text().split()[-1]


class _Link:
    """The bandwidth that all connections share."""

    def __init__(self, mb_s: float) -> None:
        self._bytes_s = mb_s * 1e6
        self._free_s = 0.0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Return when ``count`` bytes have gone through."""
        if not self._bytes_s:
            return
        with self._lock:
            now_s = time.monotonic()
            self._free_s = max(now_s, self._free_s) + count / self._bytes_s
            wait_s = self._free_s - now_s
        time.sleep(wait_s)


class _Connection:
    """Both directions of one connection, a thread for each."""

    def __init__(
        self, client: socket.socket, server: socket.socket, delay_s: float, link: _Link
    ) -> None:
        self._client = client
        self._server = server
        self._delay_s = delay_s
        self._link = link
        self._asked = False  # a request was sent, and its answer has not begun

    def start(self) -> None:
        for direction in (self._requests, self._answers):
            threading.Thread(target=direction, daemon=True).start()

    def _requests(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(_REQUEST_BYTES):
                self._asked = True
                self._server.sendall(data)
        self._end(self._server)

    def _answers(self) -> None:
        source, sink = os.pipe()
        fcntl(source, F_SETPIPE_SZ, _PIPE_BYTES)
        with suppress(OSError):
            while count := os.splice(self._server.fileno(), sink, _PIPE_BYTES):
                if self._asked:
                    self._asked = False
                    time.sleep(self._delay_s)
                self._link.take(count)
                while count:
                    count -= os.splice(source, self._client.fileno(), count)
        os.close(source)
        os.close(sink)
        self._end(self._client)

    @staticmethod
    def _end(other: socket.socket) -> None:
        """Pass the end on; the sockets close when both directions have ended."""
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


def _main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    delay_s = float(sys.argv[2])
    link = _Link(float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    listener = socket.create_server((_HOST, 0), backlog=256)
    print(f"listening {_HOST}:{listener.getsockname()[1]}", flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((host, int(port)))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Connection(client, server, delay_s, link).start()


if __name__ == "__main__":
    _main()
