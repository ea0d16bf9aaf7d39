"""Clients that mean no good, by the thousand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.waiting import wait_until

_CLIENTS_OF_AN_ADDRESS = 100
"""127.0.0.0/8 has enough addresses, and an address ends of 28,000 ports."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT
_HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 4000


class DrippingClients:
    """Connections that send a request byte by byte, and never to its end; a context manager.

    One thread serves them all. A client that is dropped connects again.

    Attributes:
        rounds: how often every client has sent a byte.
    """

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._clients: list[tuple[socket.socket | None, int]] = [(None, 0)] * count
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._drip, name="drip")
        self.rounds = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()
        for client, _sent in self._clients:
            if client is not None:
                client.close()

    def wait_for_rounds(self, count: int) -> None:
        """Return after so many more rounds."""
        wanted = self.rounds + count
        wait_until(lambda: self.rounds >= wanted, f"{count} rounds of all clients")

    def _drip(self) -> None:
        while not self._leaving.wait(1 if self.rounds else 0):
            for index, (client, sent) in enumerate(self._clients):
                if self._leaving.is_set():
                    return
                self._clients[index] = self._drip_once(index, client, sent)
            self.rounds += 1

    def _drip_once(
        self, index: int, client: socket.socket | None, sent: int
    ) -> tuple[socket.socket | None, int]:
        try:
            if client is None:
                client, sent = connect(self._port, index), 0
            client.send(_HEAD[sent : sent + 1])
        except OSError:  # dropped, or the server is too busy to accept
            if client is not None:
                client.close()
            return None, 0
        return client, sent + 1


class ReadingClients:
    """Clients that read a page of 127.0.0.1 again and again, each time on a new connection.

    A context manager. They are threads of another process, so that they keep nobody waiting here.

    Attributes:
        statuses: after the end, how often each HTTP status came; 0: no answer.
    """

    def __init__(self, port: int, page: str, count: int) -> None:
        self._command = [sys.executable, "-m", __name__, str(port), page, str(count)]
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "all have asked\n"
        return self

    def __exit__(self, *_: object) -> None:
        said = self._process.communicate("leave\n")[0]
        self.statuses = {int(status): count for status, count in json.loads(said).items()}


def _read_for_ever(port: int, page: str, statuses: Counter[int], begun: threading.Barrier) -> None:
    begun.wait()
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
        except (OSError, http.client.HTTPException):
            statuses[0] += 1
        finally:
            connection.close()


def connect(port: int, index: int = 0) -> socket.socket:
    """A connection to 127.0.0.1, from an address that follows from the client's number."""
    number = index // _CLIENTS_OF_AN_ADDRESS
    client = socket.socket()
    try:
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.bind((f"127.1.{number // 256}.{number % 256 or 1}", 0))
        client.connect(("127.0.0.1", port))
    except OSError:
        client.close()
        raise
    return client


@contextlib.contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """Let this process have so many files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), max(hard, count)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes(pid: int) -> int:
    """How much memory a process has of its own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no RssAnon")


def thread_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptor_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection. What it sent before is thrown away."""
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True


def is_read(connection: socket.socket) -> bool:
    """Whether the server on this machine has read all that was sent to it (proc_net_tcp(5))."""
    (_, ours), (_, theirs) = connection.getsockname()[:2], connection.getpeername()[:2]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(address.rpartition(":")[2], 16) for address in fields[1:3]]
        if ports == [theirs, ours]:
            return int(fields[4].rpartition(":")[2], 16) == 0
    return False


def main(port: int, page: str, count: int) -> None:
    """The process of :class:`ReadingClients`: reads until a line comes on standard input."""
    statuses: Counter[int] = Counter()
    begun = threading.Barrier(count + 1)
    what = (port, page, statuses, begun)
    for _ in range(count):
        threading.Thread(target=_read_for_ever, args=what, daemon=True).start()
    begun.wait()
    print("all have asked", flush=True)
    sys.stdin.readline()
    print(json.dumps(statuses), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
