r"""An S3 server that costs next to nothing, and can behave as if it were far away.

``python -m benchmarks.sendfile_server LARGE SIZE SMALL SMALL_SIZE`` prints its port, and serves
LARGE objects ``large-0``, ``large-1``, … of SIZE bytes and SMALL ones, ``small/0``, …, of
SMALL_SIZE. All have the same bytes. There is one bucket, whatever its name; no login is checked.
It listens on loopback, at 127.0.0.1 and, with ``--addresses 9``, at 127.0.0.2 to 127.0.0.9, too.

As a cloud behaves::

    python -m benchmarks.sendfile_server 16 1073741824 5000 110000 --processes 1 \
        --mb-per-s 20 --delay-ms 30
    python -m benchmarks.sendfile_server 16 1073741824 5000 110000 --processes 1 \
        --mb-per-s 85 --delay-ms 15 --spread 0.4 --late 0.01 --never 0.001 --seed 1

``--mb-per-s`` is for each connection and direction: downloads are paced by the kernel
(SO_MAX_PACING_RATE, which needs no qdisc), uploads are read slowly. An answer to an upload comes
the delay after its last byte. ``--folder`` serves the files below a folder, too, as they are now.

As a cloud on a bad day: ``--reset 0.01`` resets the connection of one request in a hundred, half of
the body through; with ``--dying-s 10`` there is always one address that is dead, the next one after
ten seconds. Half of them refuse connections and reset those that they have, the others are silent.

By default there is one process for each core, for reads only. With ``--processes 1`` it also
takes uploads, which it keeps in memory, and counts: ``GET /-/counts`` is a JSON document
(:meth:`Counts.facts`) which it prints, too, when it gets SIGTERM; ``DELETE /-/counts`` counts from
nothing and begins again with the first delay. A second port, printed in the next line, is for
looking at the objects from near: as fast as it can be, and not counted.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import click

from benchmarks import s3_answers
from benchmarks.far_store import Accidents, Behaviour, Counts, Delays, refuses
from benchmarks.memory_objects import Object, Objects, Piece, Upload
from sidecar.mounter.system import prctl

HOST = "127.0.0.1"
COUNTS = "/-/counts"
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
_XML = "application/xml"
_BACKLOG = 4096
_READ_BYTES = 256 * 1024
_LEAST_BYTES = 64 * 1024
_TURN_S = 0.01
"""How long a piece of an upload takes; another one is in the socket's buffer."""
_LOOK_S = 0.1
"""How often an address checks whether it is dead."""
_RESET = struct.pack("ii", 1, 0)
_MAX_PACING_RATE = getattr(socket, "SO_MAX_PACING_RATE", 47)
_KEPT = re.compile(r"(?i)x-amz-meta-.*|content-type|content-encoding|cache-control")


class Store:
    """What all connections share."""

    def __init__(
        self, objects: Objects, behaviour: Behaviour, *, is_only: bool, addresses: int = 1
    ) -> None:
        self.objects = objects
        self.behaviour = behaviour
        self.is_only = is_only
        self.delays = Delays(behaviour)
        self.accidents = Accidents(behaviour, addresses - 1)
        self.counts = Counts()

    @property
    def turn_bytes(self) -> int:
        """How much of an upload a connection reads at once."""
        rate = self.behaviour.bytes_per_s
        return max(_LEAST_BYTES, int(rate * _TURN_S)) if rate else _READ_BYTES

    def listen(self, address: str, port: int) -> socket.socket:
        """A listener whose connections are paced."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if rate := self.behaviour.bytes_per_s:
            listener.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, rate)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                listener.setsockopt(socket.SOL_SOCKET, buffer, self.turn_bytes)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
        return listener

    def serve(self, listener: socket.socket) -> NoReturn:
        """Serve all clients while the address is not dead."""
        address, port = listener.getsockname()
        while True:
            if self.behaviour.dying_s:
                while dead_s := self.accidents.dead_s(address):
                    if refuses(address):
                        listener.close()
                    time.sleep(dead_s)
                if listener.fileno() < 0:
                    listener = self.listen(address, port)
                if not select.select([listener], [], [], _LOOK_S)[0]:
                    continue
            client, _ = listener.accept()
            self.counts.connected(address)
            threading.Thread(target=_Connection(client, self).serve, daemon=True).start()


class _NoAnswer(Exception):
    """No answer is sent, so that the client waits until it gives up."""


class _Request:
    def __init__(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        self.method, target, _ = first.split(" ")
        url = urlsplit(target)
        self.path = unquote(url.path)
        _, _, self.key = self.path.lstrip("/").partition("/")
        self.fields = dict(parse_qsl(url.query, keep_blank_values=True))
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): text.strip() for name, _, text in pairs}
        self.size_bytes = int(self.headers.get("content-length", 0))

    @property
    def is_framed(self) -> bool:
        """Whether the body is S3's chunks, with signatures or checksums in between."""
        return self.headers.get("x-amz-content-sha256", "").startswith("STREAMING-")

    @property
    def kept(self) -> dict[str, str]:
        """The headers that an object keeps."""
        return {name: text for name, text in self.headers.items() if _KEPT.fullmatch(name)}


def _is_met(etag: str | None, there: Object) -> bool:
    """Whether the condition holds; clients send an ETag with its quotes or without."""
    return etag is None or etag.strip('"') == there.etag.strip('"')


class _Connection:
    def __init__(self, client: socket.socket, store: Store) -> None:
        self._client = client
        self._store = store
        self._objects = store.objects
        self._received = b""
        self._breaks = False
        self._buffer = memoryview(bytearray(store.turn_bytes))

    def serve(self) -> None:
        """Answer requests until the client goes."""
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._client, suppress(OSError):
            while (head := self._head()) is not None:
                request = _Request(head)
                if request.path == COUNTS:
                    self._send_counts(request)
                    continue
                try:
                    with self._store.counts.busy(_operation(request)):
                        self._die_with_address()
                        self._breaks = self._store.accidents.resets()
                        self._answer(request)
                except _NoAnswer:
                    self._store.counts.accident("silent")
                    while self._client.recv_into(self._buffer):
                        pass

    def _head(self) -> str | None:
        while b"\r\n\r\n" not in self._received:
            count = self._client.recv_into(self._buffer)
            if not count:
                return None
            self._received += self._buffer[:count]
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def _die_with_address(self) -> None:
        address = self._client.getsockname()[0]
        if self._store.accidents.dead_s(address):
            if refuses(address):
                self._break()
            raise _NoAnswer

    def _break(self) -> NoReturn:
        """Reset the connection."""
        self._store.counts.accident("reset")
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise OSError("a reset that was asked for")

    def _answer(self, request: _Request) -> None:
        if request.method in ("PUT", "POST") and not self._store.is_only:
            self._send(HTTPStatus.NOT_IMPLEMENTED, s3_answers.error("NotImplemented"))
            raise OSError("its body is not read")
        answers: dict[str, Callable[[_Request], None]] = {
            "GET": self._get,
            "HEAD": self._get,
            "PUT": self._put,
            "POST": self._post,
            "DELETE": self._delete,
        }
        answers[request.method](request)

    def _get(self, request: _Request) -> None:
        there = self._objects.get(request.key)
        if not request.key:
            self._wait()
            self._send(HTTPStatus.OK, self._bucket(request))
        elif there is None:
            self._fail(HTTPStatus.NOT_FOUND, "NoSuchKey", request)
        elif not _is_met(request.headers.get("if-match"), there):
            self._fail(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed", request)
        else:
            self._wait()
            self._send_object(request, there)

    def _bucket(self, request: _Request) -> bytes:
        if "location" in request.fields:
            return s3_answers.document("LocationConstraint", "")
        if "uploads" in request.fields:
            about = {"Bucket": "bucket", "IsTruncated": "false"}
            return s3_answers.document("ListMultipartUploadsResult", s3_answers.elements(about))
        return s3_answers.page(self._objects, request.fields)

    def _put(self, request: _Request) -> None:
        upload = self._objects.upload(request.fields.get("uploadId", ""))
        if source := request.headers.get("x-amz-copy-source"):
            self._copy(request, source, upload)
            return
        segment = self._objects.memory.segment()
        for block in self._body(request):
            segment.append(block)
        new = self._objects.made([Piece(segment, segment.size_bytes)], request.kept)
        if upload is not None:
            upload.parts[int(request.fields["partNumber"])] = new
            self._wait()
            self._send(HTTPStatus.OK, b"", {"ETag": new.etag})
        elif "uploadId" in request.fields:
            self._fail(HTTPStatus.NOT_FOUND, "NoSuchUpload", request)
        else:
            self._store_object(request, new)

    def _copy(self, request: _Request, source: str, upload: Upload | None) -> None:
        _, _, key = unquote(source).lstrip("/").partition("/")
        copied = self._objects.get(key)
        if copied is None or (upload is None and "uploadId" in request.fields):
            code = "NoSuchKey" if copied is None else "NoSuchUpload"
            self._fail(HTTPStatus.NOT_FOUND, code, request)
        elif not _is_met(request.headers.get("x-amz-copy-source-if-match"), copied):
            self._fail(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed", request)
        elif upload is not None:
            whole = f"bytes=0-{copied.size_bytes - 1}"
            asked = request.headers.get("x-amz-copy-source-range", whole)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            new = self._objects.made(copied.range(int(first), int(last) + 1), {})
            upload.parts[int(request.fields["partNumber"])] = new
            self._wait()
            about = {"ETag": new.etag, "LastModified": s3_answers.LISTING_TIME}
            body = s3_answers.document("CopyPartResult", s3_answers.elements(about))
            self._send(HTTPStatus.OK, body)
        else:
            is_new = request.headers.get("x-amz-metadata-directive") == "REPLACE"
            headers = request.kept if is_new else copied.headers
            self._store_object(request, self._objects.made(copied.pieces, headers), is_copy=True)

    def _post(self, request: _Request) -> None:
        sent = b"".join(bytes(block) for block in self._body(request))
        if "uploads" in request.fields:
            about = {"Bucket": "bucket", "Key": request.key}
            about["UploadId"] = self._objects.begin(request.key, request.kept)
            name, content = "InitiateMultipartUploadResult", s3_answers.elements(about)
        elif "delete" in request.fields:
            self._objects.delete(s3_answers.texts(sent, "Key"))
            name, content = "DeleteResult", ""
        else:
            self._complete(request, sent)
            return
        self._wait()
        self._send(HTTPStatus.OK, s3_answers.document(name, content))

    def _complete(self, request: _Request, sent: bytes) -> None:
        upload_id = request.fields.get("uploadId", "")
        upload = self._objects.upload(upload_id)
        if upload is None:
            self._fail(HTTPStatus.NOT_FOUND, "NoSuchUpload", request)
            return
        numbers = [int(number) for number in s3_answers.texts(sent, "PartNumber")]
        if not numbers or any(number not in upload.parts for number in numbers):
            self._fail(HTTPStatus.BAD_REQUEST, "InvalidPart", request)
            return
        pieces = [piece for number in numbers for piece in upload.parts[number].pieces]
        if self._store_object(request, self._objects.made(pieces, upload.headers)):
            self._objects.end(upload_id)

    def _store_object(self, request: _Request, new: Object, *, is_copy: bool = False) -> bool:
        expected = request.headers.get("if-match")
        absent = request.headers.get("if-none-match") == "*"
        if not self._objects.put(request.key, new, expected=expected, absent=absent):
            self._fail(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed", request)
            return False
        self._wait()
        about = {"Key": request.key, "ETag": new.etag, "LastModified": s3_answers.LISTING_TIME}
        content = s3_answers.elements(about)
        if is_copy:
            body = s3_answers.document("CopyObjectResult", content)
        elif request.method == "POST":
            body = s3_answers.document("CompleteMultipartUploadResult", content)
        else:
            body = b""
        self._send(HTTPStatus.OK, body, {"ETag": new.etag})
        return True

    def _delete(self, request: _Request) -> None:
        if upload_id := request.fields.get("uploadId"):
            self._objects.end(upload_id)
        else:
            self._objects.delete([request.key])
        self._wait()
        self._send(HTTPStatus.NO_CONTENT, b"")

    def _body(self, request: _Request) -> Iterator[memoryview]:
        blocks = self._blocks(request)
        return _unframed(blocks) if request.is_framed else blocks

    def _blocks(self, request: _Request) -> Iterator[memoryview]:
        """The bytes after the head, no faster than a connection of this store is."""
        if request.headers.get("expect", "").lower() == "100-continue":
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        rate = self._store.behaviour.bytes_per_s
        left, due_s = request.size_bytes, 0.0
        while left:
            if self._received:
                block = memoryview(self._received[:left])
                self._received = self._received[left:]
            else:
                most = min(left, len(self._buffer))
                count = self._client.recv_into(self._buffer, most, socket.MSG_WAITALL)
                if not count:
                    raise OSError("the client is gone")
                block = self._buffer[:count]
            left -= len(block)
            if self._breaks and left < request.size_bytes // 2:
                self._break()
            self._store.counts.moved("in", len(block))
            yield block
            if rate:
                now_s = time.monotonic()
                due_s = max(due_s, now_s - _TURN_S) + len(block) / rate
                time.sleep(max(0.0, due_s - now_s))

    def _wait(self) -> None:
        """Wait as long as this store is far away."""
        delay_s = self._store.delays.next()
        if delay_s == math.inf:
            raise _NoAnswer
        time.sleep(delay_s)

    def _send_object(self, request: _Request, one: Object) -> None:
        first, last, status = 0, one.size_bytes - 1, "200 OK"
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            first, last = int(found[1]), min(int(found[2] or last), last)
            if first > last:
                self._send(
                    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, s3_answers.error("InvalidRange")
                )
                return
            status = f"206 Partial Content\r\nContent-Range: bytes {first}-{last}/{one.size_bytes}"
        headers = {"ETag": one.etag, "Last-Modified": _DATE, "Accept-Ranges": "bytes"}
        headers |= {"content-type": "binary/octet-stream"} | one.headers
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head_only = request.method == "HEAD"
        self._client.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {last + 1 - first}\r\n{text}\r\n".encode(),
            0 if head_only else socket.MSG_MORE,
        )
        if not head_only:
            self._send_bytes(one, first, (first + last) // 2 if self._breaks else last + 1)
        if self._breaks:
            self._break()

    def _send_bytes(self, one: Object, first: int, end: int) -> None:
        for piece in one.range(first, end):
            done = 0
            while done < piece.size_bytes:
                sent = os.sendfile(
                    self._client.fileno(),
                    piece.segment.descriptor,
                    piece.segment.start + piece.skipped_bytes + done,
                    piece.size_bytes - done,
                )
                self._store.counts.moved("out", sent)
                done += sent

    def _fail(self, status: HTTPStatus, code: str, request: _Request) -> None:
        self._wait()
        self._send(status, b"" if request.method == "HEAD" else s3_answers.error(code))

    def _send_counts(self, request: _Request) -> None:
        if request.method == "DELETE":
            self._store.counts.reset()
            self._store.delays.reset()
        self._send(HTTPStatus.OK, json.dumps(self._store.counts.facts()).encode())

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self._breaks:
            self._break()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        if status is not HTTPStatus.NO_CONTENT:
            head += f"Content-Length: {len(body)}\r\nContent-Type: {_XML}\r\n"
        head += "".join(f"{name}: {text}\r\n" for name, text in (headers or {}).items())
        self._client.sendall(f"{head}\r\n".encode() + body)


def _operation(request: _Request) -> str:
    """A request's operation, by Amazon's name if that is useful."""
    if not request.key:
        return "DeleteObjects" if request.method == "POST" else "ListObjects"
    if "uploadId" in request.fields:
        return {
            "PUT": "UploadPart",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
        }.get(request.method, "ListParts")
    if request.method == "PUT" and "x-amz-copy-source" in request.headers:
        return "CopyObject"
    if request.method == "POST":
        return "CreateMultipartUpload"
    return f"{request.method.capitalize()}Object"


def _unframed(blocks: Iterator[memoryview]) -> Iterator[memoryview]:
    """The data of S3's chunks: a line with the size, data, an empty line; 0 and trailers end."""
    left, line, is_over = 0, b"", False
    for whole in blocks:
        block = whole
        while block:
            if left:
                data, block = block[:left], block[left:]
                left -= len(data)
                yield data
                continue
            text, found, _ = bytes(block[:1024]).partition(b"\n")
            line += text
            block = block[len(text) + len(found) :]
            if found:
                if line.strip() and not is_over:
                    left = int(line.split(b";")[0], 16)
                    is_over = not left
                line = b""


@click.command()
@click.argument("large", type=int)
@click.argument("size", type=int)
@click.argument("small", type=int)
@click.argument("small_size", type=int)
@click.option("--processes", default=0, help="Default: one for each core.")
@click.option("--port", default=0, help="Default: a free one.")
@click.option("--addresses", default=1, help="Of loopback, from 127.0.0.1 on.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--mb-per-s", type=float, help="Of a connection; default: what it can.")
@click.option("--delay-ms", default=0.0, help="Median until the first byte.")
@click.option("--spread", default=0.0, help="Of the delay's logarithm.")
@click.option("--late", default=0.0, help="Share of answers after half a second and more.")
@click.option("--never", default=0.0, help="Share of requests without an answer.")
@click.option("--reset", default=0.0, help="Share of requests whose connection is reset.")
@click.option("--dying-s", default=0.0, help="How long each address is dead, in turn.")
@click.option("--seed", default=1, help="Of the delays.")
def main(
    *,
    large: int,
    size: int,
    small: int,
    small_size: int,
    processes: int,
    port: int,
    addresses: int,
    folder: Path | None,
    mb_per_s: float | None,
    delay_ms: float,
    spread: float,
    late: float,
    never: float,
    reset: float,
    dying_s: float,
    seed: int,
) -> None:
    """Serve until SIGTERM or SIGINT. See the module's documentation."""
    rate = int(mb_per_s * 1e6) if mb_per_s else None
    behaviour = Behaviour(rate, delay_ms / 1000, spread, late, never, reset, dying_s, seed)
    objects = Objects()
    objects.fill(large, size, small, small_size)
    if folder is not None:
        objects.load(folder)
    processes = processes or len(os.sched_getaffinity(0))
    store = Store(objects, behaviour, is_only=processes == 1, addresses=addresses)
    listeners: list[list[socket.socket]] = []  # the kernel shares connections among processes
    for _ in range(processes):
        first = store.listen(HOST, port)
        port = first.getsockname()[1]
        others = [store.listen(f"127.0.0.{number}", port) for number in range(2, addresses + 1)]
        listeners.append([first, *others])
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # of all threads: sigwait takes them
    printed = [port]
    if processes > 1:
        for own in listeners:
            if not os.fork():
                prctl.die_with_parent()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
                _serve_all(store, own)
                signal.pause()
    else:
        near = Store(objects, Behaviour(), is_only=True)
        near_listener = near.listen(HOST, 0)
        printed.append(near_listener.getsockname()[1])
        _serve_all(store, listeners[0])
        _serve_all(near, [near_listener])
    print(*printed, sep="\n", flush=True)
    signal.sigwait(ends)
    if store.is_only:
        print(json.dumps(store.counts.facts()), flush=True)


def _serve_all(store: Store, listeners: list[socket.socket]) -> None:
    """Each listener in a thread of its own."""
    for listener in listeners:
        threading.Thread(target=store.serve, args=(listener,), daemon=True).start()


if __name__ == "__main__":
    main()
