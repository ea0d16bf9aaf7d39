"""An S3 server that costs next to nothing: objects of one buffer, sent by sendfile(2).

``python -m benchmarks.sendfile_server LARGE SIZE SMALL SMALL_SIZE`` prints its port, and serves
LARGE objects ``large-0``, ``large-1``, … of SIZE bytes and SMALL ones, ``small/0``, …, of
SMALL_SIZE. All have the same bytes. One process for each core that it may use; no login is checked.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from sidecar.mounter.system import prctl

HOST = "127.0.0.1"
ETAG = '"00000000000000000000000000000001"'
BLOCK = bytes(range(256)) * 4096
"""The content, over and over: a MiB."""
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_BACKLOG = 4096
_HEAD_BYTES = 16384
_PAGE_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Objects:
    """What is served; ``descriptor``: of a file that is as long as the largest."""

    descriptor: int
    sizes: dict[str, int]

    @classmethod
    def make(cls, large: int, size: int, small: int, small_size: int) -> Objects:
        """Raises OSError where there is not enough memory."""
        descriptor = os.memfd_create("objects")
        for _ in range(0, max(size, small_size), len(BLOCK)):
            os.write(descriptor, BLOCK)
        sizes = {f"large-{number}": size for number in range(large)}
        return cls(descriptor, sizes | {f"small/{number}": small_size for number in range(small)})


class _Connection:
    def __init__(self, client: socket.socket, objects: Objects) -> None:
        self._client = client
        self._objects = objects

    def serve(self) -> None:
        """Answer requests, which have no body, until the client goes."""
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with self._client:
            while more := self._client.recv(_HEAD_BYTES):
                received += more
                while b"\r\n\r\n" in received:
                    head, _, received = received.partition(b"\r\n\r\n")
                    self._answer(head.decode("latin-1"))

    def _answer(self, head: str) -> None:
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        url = urlsplit(target)
        _, _, key = unquote(url.path).lstrip("/").partition("/")
        size = self._objects.sizes.get(key)
        if not key:
            self._send(HTTPStatus.OK, self._page(url.query), "application/xml")
        elif size is None:
            self._send(HTTPStatus.NOT_FOUND, b"", "application/xml")
        else:
            self._send_object(head, size, head_only=method == "HEAD")

    def _send_object(self, head: str, size: int, *, head_only: bool) -> None:
        first, last, status = 0, size - 1, "200 OK"
        if found := re.search(r"(?i)^range: bytes=(\d+)-(\d*)", head, re.M):
            first, last = int(found[1]), min(int(found[2] or last), last)
            status = f"206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}"
        count = last + 1 - first
        self._client.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {count}\r\nETag: {ETAG}\r\n"
            f"Last-Modified: {_DATE}\r\nContent-Type: binary/octet-stream\r\n\r\n".encode(),
            0 if head_only else socket.MSG_MORE,
        )
        while not head_only and count:
            sent = os.sendfile(self._client.fileno(), self._objects.descriptor, first, count)
            first, count = first + sent, count - sent

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: {len(body)}\r\n"
        self._client.sendall(f"{head}Content-Type: {kind}\r\n\r\n".encode() + body)

    def _page(self, query: str) -> bytes:
        """A page of ListObjectsV2."""
        fields = {name: values[-1] for name, values in parse_qs(query).items()}
        prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
        after = fields.get("continuation-token", fields.get("start-after", ""))
        entries: dict[str, int | None] = {}  # a common prefix has no size
        for key in sorted(self._objects.sizes):
            if not key.startswith(prefix):
                continue
            name, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entry = prefix + name + found if found else key
            if entry > after:
                entries[entry] = None if found else self._objects.sizes[key]
        page = list(entries)[: min(int(fields.get("max-keys", _PAGE_NAMES)), _PAGE_NAMES)]
        is_cut = len(page) < len(entries)
        text = "".join(
            f"<CommonPrefixes><Prefix>{entry}</Prefix></CommonPrefixes>"
            if (size := entries[entry]) is None
            else f"<Contents><Key>{entry}</Key><Size>{size}</Size><ETag>{ETAG}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for entry in page
        )
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if is_cut else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{'true' if is_cut else 'false'}</IsTruncated>{token}{text}"
            "</ListBucketResult>"
        ).encode()


def _serve(listener: socket.socket, objects: Objects) -> NoReturn:
    while True:
        client, _ = listener.accept()
        connection = _Connection(client, objects)
        threading.Thread(target=connection.serve, daemon=True).start()


def main() -> None:
    """Fork the processes, and wait for a signal. They end with this one."""
    objects = Objects.make(*map(int, sys.argv[1:5]))
    listeners, port = [], 0
    for _ in os.sched_getaffinity(0):  # the kernel shares connections among listeners
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((HOST, port))
        listener.listen(_BACKLOG)
        port = listener.getsockname()[1]
        listeners.append(listener)
    for listener in listeners:
        if not os.fork():
            prctl.die_with_parent()
            _serve(listener, objects)
    print(port, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
