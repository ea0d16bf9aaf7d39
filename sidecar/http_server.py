"""An HTTP server that strangers cannot exhaust: everything it holds has a limit.

One thread turns a loop over all connections, and a fixed number of threads computes answers, so
that nobody waits for a client. A request must be whole within a deadline, however steadily its
bytes drip. When there are too many connections, the oldest one that waits for its client goes:
a probe, which connects and asks at once, always gets through. What bodies and answers take is
bounded for all connections together.

Standard library only, since the sidecar's memory is the experiment's.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import logging
import os
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple

from sidecar import logs
from sidecar.errors import PortInUse
from sidecar.http_message import (
    CONTINUE,
    Head,
    Refused,
    Request,
    Response,
    parse_head,
    render,
)
from sidecar.units import KIB

log = logging.getLogger("sidecar.http")

HEAD_BYTES: Final = 8 * KIB
_BACKLOG: Final = 256
_SOCKET_BUFFER_BYTES: Final = 128 * KIB
"""The kernel's buffers of a connection, which it would otherwise let grow to megabytes."""
_CHUNK_BYTES: Final = 64 * KIB
"""Read at once. More than a record of TLS, so that nothing is left where no selector sees it."""
_SMALL_BYTES: Final = 64 * KIB
"""A connection that holds no more than this is not counted: their number is bounded."""
_ACCEPTS_IN_A_TURN: Final = 16
_LINGER_S: Final = 2.0
"""How long to read on after a refusal, so that the client sees it instead of a reset."""
_PAUSE_S: Final = 0.1
_SAY_AGAIN_S: Final = 60.0
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may take.

    Attributes:
        connections: how many at once.
        idle_s: for the TLS handshake, and between two requests.
        request_s: for a request from its first byte to its last, and again for its answer.
        body_bytes: of one request.
        held_bytes: bodies and answers of all connections together.
    """

    connections: int
    idle_s: float
    request_s: float
    body_bytes: int
    held_bytes: int


class Route(NamedTuple):
    """How one path is answered.

    Attributes:
        method: GET, which answers HEAD too, or POST.
        answer: called in the route's thread.
        thread: routes with the same name share one thread, and wait for each other.
    """

    method: str
    answer: Callable[[Request], Response]
    thread: str = "answers"


def listen(host: str, port: int, hint: str) -> socket.socket:
    """A listening socket. ``::`` takes IPv4 too; port 0 picks a free one.

    Args:
        host: the address to listen on.
        hint: what the reader of the error can do.

    Raises:
        PortInUse: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        # Not what create_server() adds to it. A name that is none has no errno.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise PortInUse(f"cannot listen on {host} port {port}: {reason}", hint) from None
    # Accepted sockets inherit them.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    return listener


class _Phase(enum.Enum):
    HANDSHAKE = enum.auto()
    READING = enum.auto()  # a request, or waiting for one
    COMPUTING = enum.auto()  # the answer, in a route's thread
    WRITING = enum.auto()
    LINGERING = enum.auto()  # after a refusal


class _Connection:
    """One client.

    Attributes:
        deadline_s: when it is closed unless it got further (monotonic).
        events: what the selector looks for; 0 if it is not registered.
        head: of the request that is being read or answered.
        served: how many requests were answered.
    """

    __slots__ = (
        "body_bytes",
        "deadline_s",
        "events",
        "head",
        "incoming",
        "outgoing",
        "phase",
        "served",
        "socket",
        "then",
    )

    def __init__(self, connected: socket.socket, phase: _Phase, deadline_s: float) -> None:
        self.socket = connected
        self.phase = phase
        self.deadline_s = deadline_s
        self.events = 0
        self.incoming = bytearray()
        self.head: Head | None = None
        self.body_bytes = 0  # of the request that is being answered
        self.outgoing = memoryview(b"")
        self.then: _Phase | None = None  # after writing; None: close
        self.served = 0

    @property
    def held_bytes(self) -> int:
        return len(self.incoming) + self.body_bytes + len(self.outgoing)

    @property
    def silent(self) -> bool:
        """Whether nothing of a request has come."""
        return self.phase is _Phase.READING and self.head is None and not self.incoming


class HttpServer:
    """Serves one listening socket.

    Args:
        listener: from :func:`listen`; closed at the end.
        routes: by path.
        tls: gives the context for the next connection; None: no TLS.
    """

    def __init__(
        self,
        listener: socket.socket,
        routes: Mapping[str, Route],
        limits: Limits,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._listener = listener
        self._routes = routes
        self._limits = limits
        self._tls = tls
        self._threads = {
            name: ThreadPoolExecutor(1, thread_name_prefix=name)
            for name in {route.thread for route in routes.values()}
        }
        self._connections: set[_Connection] = set()
        # Those that wait for their client, the one that waits longest first.
        self._waiting: dict[_Connection, None] = {}
        self._answers: deque[tuple[_Connection, Future[Response]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        self._accept_again_s: float | None = None  # while no connection is accepted
        self._said_s = float("-inf")
        self._stop_asked = False
        self._stopping = False
        for watched in (listener, self._woken, self._wake):
            watched.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        """Let :meth:`serve` return when it has answered. For any thread, and signal handlers."""
        self._stop_asked = True
        self._wake_up()

    def serve(self) -> None:
        """Serve until :meth:`stop`. Then requests that have begun are still answered."""
        try:
            while not self._stopping or self._connections:
                for key, _ in self._selector.select(self._patience_s()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._woken:
                        self._take_answers()
                    elif key.data in self._connections:  # it may have been dropped in this turn
                        self._advance(key.data)
                self._close_overdue()
                if self._stop_asked and not self._stopping:
                    self._begin_to_stop()
        finally:
            for connection in list(self._connections):
                self._close(connection)
            self._listener.close()
            self._selector.close()
            for thread in self._threads.values():
                thread.shutdown()
            self._woken.close()
            self._wake.close()

    # --- connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_IN_A_TURN):
            if len(self._connections) >= self._limits.connections and not self._waiting:
                self._pause()  # each of them has asked something and gets its answer
                return
            try:
                connected, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._drop_oldest()
                    self._pause()
                    return
                continue  # the client has hung up already (accept(2))
            self._welcome(connected)
            if len(self._connections) > self._limits.connections:
                self._say_crowded()
                self._drop_oldest()

    def _welcome(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        phase = _Phase.READING
        if self._tls is not None:
            phase = _Phase.HANDSHAKE
            try:
                connected = self._tls().wrap_socket(
                    connected, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # the client has hung up already
                connected.close()
                return
        connection = _Connection(connected, phase, time.monotonic() + self._limits.idle_s)
        self._connections.add(connection)
        self._waiting[connection] = None
        self._watch(connection, selectors.EVENT_READ)

    def _pause(self) -> None:
        """Accept nobody for a moment: the kernel keeps who connects."""
        if self._accept_again_s is None:
            self._selector.unregister(self._listener)
        self._accept_again_s = time.monotonic() + _PAUSE_S

    def _drop_oldest(self) -> None:
        if self._waiting:
            self._close(next(iter(self._waiting)))

    def _say_crowded(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._said_s + _SAY_AGAIN_S:
            self._said_s = now_s
            logs.event(
                log,
                "too many connections, the oldest are dropped",
                logging.WARNING,
                port=self.port,
                limit=self._limits.connections,
            )

    def _close(self, connection: _Connection) -> None:
        self._watch(connection, 0)
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        connection.socket.close()

    def _wait_for_client(self, connection: _Connection, phase: _Phase, seconds: float) -> None:
        connection.phase = phase
        connection.deadline_s = time.monotonic() + seconds
        self._waiting.pop(connection, None)
        self._waiting[connection] = None  # as the last

    def _watch(self, connection: _Connection, events: int) -> None:
        if connection.events == events:
            return
        if not connection.events:
            self._selector.register(connection.socket, events, connection)
        elif not events:
            self._selector.unregister(connection.socket)
        else:
            self._selector.modify(connection.socket, events, connection)
        connection.events = events

    # --- time ---------------------------------------------------------------------------------

    def _patience_s(self) -> float | None:
        ends_s = [connection.deadline_s for connection in self._waiting]
        if self._accept_again_s is not None:
            ends_s.append(self._accept_again_s)
        return max(0.0, min(ends_s) - time.monotonic()) if ends_s else None

    def _close_overdue(self) -> None:
        now_s = time.monotonic()
        for connection in [c for c in self._waiting if c.deadline_s <= now_s]:
            if connection not in self._connections:
                continue  # dropped for the answer to another one
            if connection.phase is _Phase.READING and not connection.silent:
                late = Refused(HTTPStatus.REQUEST_TIMEOUT, "the request took too long")
                self._send(connection, late.response, refused=True)
            else:
                self._close(connection)
        if self._accept_again_s is not None and self._accept_again_s <= now_s:
            self._accept_again_s = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _begin_to_stop(self) -> None:
        """Take no new connection; let those go that ask nothing."""
        self._stopping = True
        for _ in range(_BACKLOG // _ACCEPTS_IN_A_TURN):
            if self._accept_again_s is None:
                self._accept()  # who is connected for the kernel must not see a reset
        if self._accept_again_s is None:
            self._selector.unregister(self._listener)
        self._accept_again_s = None
        self._listener.close()
        for connection in list(self._connections):
            if connection in self._connections and connection.silent:
                self._advance(connection)  # what has come, and was not read yet
            if connection.silent and connection.served:
                self._close(connection)

    # --- requests -----------------------------------------------------------------------------

    def _advance(self, connection: _Connection) -> None:
        """Do what can be done without waiting."""
        try:
            if connection.phase is _Phase.HANDSHAKE:
                assert isinstance(connection.socket, ssl.SSLSocket)
                connection.socket.do_handshake()
                self._wait_for_client(connection, _Phase.READING, self._limits.idle_s)
                self._watch(connection, selectors.EVENT_READ)
            if connection.phase is _Phase.WRITING:
                self._write(connection)
            elif connection.phase is _Phase.LINGERING:
                self._discard(connection)
            else:
                self._read(connection)
        except ssl.SSLWantReadError:
            self._watch(connection, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(connection, selectors.EVENT_WRITE)
        except BlockingIOError:
            writing = connection.phase is _Phase.WRITING
            self._watch(connection, selectors.EVENT_WRITE if writing else selectors.EVENT_READ)
        except OSError:  # it hung up, or speaks no TLS
            self._close(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(_CHUNK_BYTES)
        if not data:
            self._close(connection)
            return
        if connection.silent:
            connection.deadline_s = time.monotonic() + self._limits.request_s
        connection.incoming += data
        self._take_request(connection)

    def _take_request(self, connection: _Connection) -> None:
        try:
            if connection.head is None:
                connection.head = self._take_head(connection)
            if connection.head is not None:
                self._take_body(connection, connection.head)
        except Refused as refused:
            self._send(connection, refused.response, refused=True)

    def _take_head(self, connection: _Connection) -> Head | None:
        """The head, once it is there. Raises Refused."""
        end = connection.incoming.find(b"\r\n\r\n", 0, HEAD_BYTES)
        if end < 0:
            if len(connection.incoming) >= HEAD_BYTES:
                raise Refused(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    f"the headers are longer than {HEAD_BYTES // KIB} KiB",
                )
            return None
        head = parse_head(bytes(connection.incoming[:end]))
        del connection.incoming[: end + 4]
        route = self._routes.get(head.path)
        if route is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        if route.method != ("GET" if head.method == "HEAD" else head.method):
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, f"only {route.method}", ("Allow", route.method)
            )
        limit_bytes = self._limits.body_bytes if route.method == "POST" else 0
        if head.body_bytes > limit_bytes:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {limit_bytes} bytes"
            )
        if head.waits and len(connection.incoming) < head.body_bytes:
            # A client that does not see it sends the body after a moment (RFC 9110, 10.1.1).
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                connection.socket.send(CONTINUE)
        return head

    def _take_body(self, connection: _Connection, head: Head) -> None:
        """Hand the request to its route, once it is whole. Raises Refused."""
        self._make_room(connection)
        if len(connection.incoming) < head.body_bytes:
            return
        body = bytes(connection.incoming[: head.body_bytes])
        del connection.incoming[: head.body_bytes]
        connection.body_bytes = len(body)
        connection.phase = _Phase.COMPUTING
        self._waiting.pop(connection, None)
        self._watch(connection, 0)
        route = self._routes[head.path]
        future = self._threads[route.thread].submit(
            route.answer, Request(head.method, head.path, body)
        )
        future.add_done_callback(functools.partial(self._on_answer, connection))

    def _make_room(self, connection: _Connection) -> None:
        """Drop the oldest that hold much, until all hold less than the limit.

        Raises:
            Refused: what is left belongs to requests that are being answered.
        """
        if connection.held_bytes <= _SMALL_BYTES:
            return
        large = [c for c in self._connections if c.held_bytes > _SMALL_BYTES]
        held_bytes = sum(c.held_bytes for c in large)
        victims = [c for c in self._waiting if c in large and c is not connection]
        while held_bytes > self._limits.held_bytes:
            if not victims:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too much at once; try again")
            held_bytes -= victims[0].held_bytes
            self._close(victims.pop(0))

    # --- answers ------------------------------------------------------------------------------

    def _on_answer(self, connection: _Connection, future: Future[Response]) -> None:
        """In the route's thread."""
        self._answers.append((connection, future))
        self._wake_up()

    def _wake_up(self) -> None:
        # If the buffer is full, it wakes up anyway; if it is closed, nothing is served any more.
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _take_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_CHUNK_BYTES)
        while self._answers:
            connection, future = self._answers.popleft()
            connection.body_bytes = 0
            failure = future.exception()
            if failure is None:
                self._send(connection, future.result())
            else:
                log.error("an answer failed", exc_info=failure)
                broken = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug: see the log")
                self._send(connection, broken.response)

    def _send(self, connection: _Connection, response: Response, *, refused: bool = False) -> None:
        head = connection.head
        keeps_open = head is not None and head.keeps_open and not refused and not self._stopping
        data = render(
            response,
            keeps_open=keeps_open,
            head_only=head is not None and head.method == "HEAD",
        )
        connection.outgoing = memoryview(data)
        connection.then = _Phase.READING if keeps_open else _Phase.LINGERING if refused else None
        if refused:
            connection.incoming.clear()
        connection.served += 1
        self._wait_for_client(connection, _Phase.WRITING, self._limits.request_s)
        try:
            self._make_room(connection)
        except Refused:
            self._close(connection)
        else:
            self._advance(connection)

    def _write(self, connection: _Connection) -> None:
        while connection.outgoing:
            sent_bytes = connection.socket.send(connection.outgoing)
            connection.outgoing = connection.outgoing[sent_bytes:]
        connection.outgoing = memoryview(b"")  # releases the answer
        connection.head = None
        if connection.then is _Phase.READING:
            self._wait_for_client(connection, _Phase.READING, self._limits.idle_s)
            self._watch(connection, selectors.EVENT_READ)
            if connection.incoming:
                connection.deadline_s = time.monotonic() + self._limits.request_s
                self._take_request(connection)
            return
        _say_goodbye(connection.socket)
        if connection.then is None:
            self._close(connection)
        else:
            self._wait_for_client(connection, _Phase.LINGERING, _LINGER_S)
            self._watch(connection, selectors.EVENT_READ)

    def _discard(self, connection: _Connection) -> None:
        # Around TLS, which has said goodbye.
        if not socket.socket.recv(connection.socket, _CHUNK_BYTES):
            self._close(connection)


def _say_goodbye(connected: socket.socket) -> None:
    """Tell the client that nothing follows, without waiting for it."""
    with contextlib.suppress(OSError):
        if isinstance(connected, ssl.SSLSocket):
            connected.unwrap()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_WR)
