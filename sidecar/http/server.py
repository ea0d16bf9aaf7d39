"""An HTTP server that strangers cannot exhaust: everything it holds has a limit.

One thread loops over all connections, and a fixed number of threads computes answers, so nobody
waits for a client. A request must be whole within a deadline, however steadily its bytes drip.
When there are too many connections, the oldest one that waits for its client is dropped. So a
probe, which connects and asks at once, always gets through. Bodies and answers of all connections
together have one limit.

Standard library only, since the sidecar's memory is the experiment's.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
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
from sidecar.http.connection import SMALL_BYTES, Body, Phase, ServedConnection
from sidecar.http.listening import BACKLOG
from sidecar.http.message import Head, HttpRequest, HttpResponse, Refused, render

log = logging.getLogger("sidecar.http")

_ACCEPTS_IN_A_TURN: Final = 16
_LINGER_S: Final = 2.0
"""How long to read on after a refusal, so that the client sees it instead of a reset."""
_PAUSE_S: Final = 0.1
_LARGE: Final = "large bodies"
_SAY_AGAIN_S: Final = 60.0
_RETRY_AFTER: Final = ("Retry-After", "1")
_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What clients may take.

    Attributes:
        connections: how many at once.
        idle_s: for the TLS handshake, and for the first byte of the first request.
        kept_s: between two requests. This is longer than clients keep an idle connection: a client
            whose request meets the end of the connection cannot know whether it was taken, and
            does not send it again unless it is a GET.
        request_s: for a request from its first byte to its last, and again for its answer.
        body_bytes: of one request.
        held_bytes: bodies and answers of all connections together.
    """

    connections: int
    idle_s: float
    kept_s: float
    request_s: float
    body_bytes: int
    held_bytes: int


class Route(NamedTuple):
    """How one path is answered.

    Attributes:
        method: GET, which answers HEAD too, or POST.
        answer: called in the route's thread; for a GET once for all who ask before the call.
        thread: routes with the same name share one thread, and wait for each other. Large bodies
            have one of their own, so that their senders keep only each other waiting.
        most: how many requests may wait for the answer. More get 503 at once, so that this route
            cannot take all connections. None: as many as there are connections.
    """

    method: str
    answer: Callable[[HttpRequest], HttpResponse]
    thread: str = "answers"
    most: int | None = None


class HttpServer:
    """Serves one listening socket.

    Args:
        listener: from :func:`sidecar.http.listening.listen`; closed at the end.
        routes: by path.
        tls: gives the context for the next connection; None: no TLS.
    """

    def __init__(
        self,
        listener: socket.socket,
        routes: Mapping[str, Route],
        limits: ServerLimits,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._listener = listener
        self._routes = routes
        self._limits = limits
        self._tls = tls
        names = {route.thread for route in routes.values()}
        names |= {_LARGE} if limits.body_bytes > SMALL_BYTES else set()
        self._threads = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in names}
        self._connections: set[ServedConnection] = set()
        # Connections that wait for their client, the longest first.
        self._waiting: dict[ServedConnection, None] = {}
        # By path of a GET: the answer that was asked for last, and who waits for it.
        self._asked: dict[str, tuple[Future[HttpResponse], list[ServedConnection]]] = {}
        self._answers: deque[tuple[list[ServedConnection], Future[HttpResponse]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        self._accept_again_s: float | None = None  # set while no connection is accepted
        self._said_s = float("-inf")
        self._stops_s = math.inf  # when no new connection is taken any more
        self._stopping = False
        for watched in (listener, self._woken, self._wake):
            watched.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    def stop(self, drain_s: float = 0.0) -> None:
        """Let :meth:`serve` return when it has answered. For any thread, and signal handlers.

        Args:
            drain_s: how long everybody is still served, for clients that do not know yet that this
                server ends. Each answer asks its client to connect anew, elsewhere.
        """
        self._stops_s = time.monotonic() + drain_s
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
                if not self._stopping and time.monotonic() >= self._stops_s:
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
            oldest = self._find_oldest() if self._is_full else None
            if oldest is None and self._is_full:
                self._pause()  # all of them have asked something and get their answer
                return
            try:
                connected, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    if (oldest := self._find_oldest()) is not None:
                        self._close(oldest)
                    self._pause()
                    return
                continue  # the client has hung up already (accept(2))
            self._welcome(connected)
            if oldest is not None and len(self._connections) > self._limits.connections:
                self._say_crowded()
                self._close(oldest)

    def _welcome(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        if self._tls is not None:
            try:
                connected = self._tls().wrap_socket(
                    connected, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # the client has hung up already
                connected.close()
                return
        connection = ServedConnection(connected, time.monotonic() + self._limits.idle_s)
        self._connections.add(connection)
        self._waiting[connection] = None
        self._watch(connection, selectors.EVENT_READ)

    def _pause(self) -> None:
        """Accept nobody for a moment: the kernel keeps new clients waiting."""
        if self._accept_again_s is None:
            self._selector.unregister(self._listener)
        self._accept_again_s = time.monotonic() + _PAUSE_S

    @property
    def _is_full(self) -> bool:
        return len(self._connections) >= self._limits.connections

    def _find_oldest(self) -> ServedConnection | None:
        """The connection that waits longest for its client; None: none does.

        What has come is read first: a client that has asked already is not dropped for a newcomer.
        """
        for connection in list(self._waiting):
            if connection in self._waiting:  # reading another one may have closed it
                self._advance(connection)
            if connection in self._waiting:
                return connection
        return None

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

    def _close(self, connection: ServedConnection) -> None:
        self._watch(connection, 0)
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        connection.socket.close()

    def _wait_for_client(self, connection: ServedConnection, phase: Phase, seconds: float) -> None:
        connection.phase = phase
        connection.deadline_s = time.monotonic() + seconds
        self._waiting.pop(connection, None)
        self._waiting[connection] = None  # as the last

    def _watch(self, connection: ServedConnection, events: int) -> None:
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
        if self._stops_s < math.inf and not self._stopping:
            ends_s.append(self._stops_s)
        return max(0.0, min(ends_s) - time.monotonic()) if ends_s else None

    def _close_overdue(self) -> None:
        now_s = time.monotonic()
        for connection in [c for c in self._waiting if c.deadline_s <= now_s]:
            if connection not in self._connections:
                continue  # dropped for another one's answer
            if connection.phase is Phase.READING and not connection.is_silent:
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
        for _ in range(BACKLOG // _ACCEPTS_IN_A_TURN):
            if self._accept_again_s is None:
                self._accept()  # a client that the kernel has connected must not see a reset
        if self._accept_again_s is None:
            self._selector.unregister(self._listener)
        self._accept_again_s = None
        self._listener.close()
        for connection in list(self._connections):
            if connection in self._connections and connection.is_silent:
                self._advance(connection)  # reads what has come
            if connection.is_silent and connection.served:
                self._close(connection)

    # --- requests -----------------------------------------------------------------------------

    def _advance(self, connection: ServedConnection) -> None:
        """Do what can be done without waiting."""
        try:
            if connection.phase is Phase.HANDSHAKE:
                connection.shake_hands()
                self._wait_for_client(connection, Phase.READING, self._limits.idle_s)
                self._watch(connection, selectors.EVENT_READ)
            if connection.phase is Phase.WRITING:
                self._write(connection)
            elif connection.phase is Phase.LINGERING:
                if not connection.discard():
                    self._close(connection)
            else:
                self._read(connection)
        except ssl.SSLWantReadError:
            self._watch(connection, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._watch(connection, selectors.EVENT_WRITE)
        except BlockingIOError:
            writing = connection.phase is Phase.WRITING
            self._watch(connection, selectors.EVENT_WRITE if writing else selectors.EVENT_READ)
        except OSError:  # it hung up, or speaks no TLS
            self._close(connection)

    def _read(self, connection: ServedConnection) -> None:
        if connection.is_silent:
            connection.deadline_s = time.monotonic() + self._limits.request_s
        if connection.receive():
            self._take_request(connection)
        else:
            self._close(connection)

    def _take_request(self, connection: ServedConnection) -> None:
        """Hand a request to its route, once it is whole."""
        try:
            head = connection.head
            if head is None and (head := connection.take_head()) is not None:
                self._check(head)
                connection.expect_body(head)
            self._make_room(connection)
        except Refused as refused:
            self._send(connection, refused.response, refused=True)
            return
        body = connection.take_body()
        if head is not None and body is not None:
            self._compute(connection, head, body)

    def _check(self, head: Head) -> None:
        """Raises Refused if no route takes the request, or too many wait for its answer."""
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
        if route.most is not None and self._count_waiting_for(head.path) >= route.most:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many ask for it; try again", _RETRY_AFTER
            )

    def _compute(self, connection: ServedConnection, head: Head, body: Body) -> None:
        connection.phase = Phase.COMPUTING
        self._waiting.pop(connection, None)
        self._watch(connection, 0)
        route = self._routes[head.path]
        asked = self._asked.get(head.path) if route.method == "GET" else None
        if asked is not None and not (asked[0].running() or asked[0].done()):
            asked[1].append(connection)  # the answer is made after the request
            return
        connections = [connection]
        thread = _LARGE if len(body) > SMALL_BYTES else route.thread
        future = self._threads[thread].submit(_answer, route, head, body)
        self._asked[head.path] = future, connections
        future.add_done_callback(functools.partial(self._on_answer, connections))

    def _count_waiting_for(self, path: str) -> int:
        return sum(
            connection.phase is Phase.COMPUTING
            and connection.head is not None
            and connection.head.path == path
            for connection in self._connections
        )

    def _make_room(self, connection: ServedConnection) -> None:
        """Drop the oldest connections that hold much, until all hold less than the limit.

        Raises:
            Refused: the rest belongs to requests that are being answered.
        """
        if connection.held_bytes <= SMALL_BYTES:
            return
        large = [c for c in self._connections if c.held_bytes > SMALL_BYTES]
        held_bytes = sum(c.held_bytes for c in large)
        victims = [c for c in self._waiting if c in large and c is not connection]
        while held_bytes > self._limits.held_bytes:
            if not victims:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too much at once; try again")
            held_bytes -= victims[0].held_bytes
            self._close(victims.pop(0))

    # --- answers ------------------------------------------------------------------------------

    def _on_answer(self, connections: list[ServedConnection], future: Future[HttpResponse]) -> None:
        """In the route's thread."""
        self._answers.append((connections, future))
        self._wake_up()

    def _wake_up(self) -> None:
        # A full buffer wakes the loop anyway; a closed one serves nobody any more.
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _take_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(BACKLOG)
        while self._answers:
            connections, future = self._answers.popleft()
            self._asked = {
                path: asked for path, asked in self._asked.items() if asked[0] is not future
            }
            failure = future.exception()
            if failure is None:
                response = future.result()
            else:
                log.error("an answer failed", exc_info=failure)
                response = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "a bug: see the log").response
            for connection in connections:
                self._send(connection, response)

    def _send(
        self, connection: ServedConnection, response: HttpResponse, *, refused: bool = False
    ) -> None:
        head = connection.head
        goes = refused or self._stops_s < math.inf
        keeps_open = head is not None and head.keeps_open and not goes
        data = render(
            response,
            keeps_open=keeps_open,
            head_only=head is not None and head.method == "HEAD",
        )
        then = Phase.READING if keeps_open else Phase.LINGERING if refused else None
        connection.answer(data, then)
        self._wait_for_client(connection, Phase.WRITING, self._limits.request_s)
        try:
            self._make_room(connection)
        except Refused:
            self._close(connection)
        else:
            self._advance(connection)

    def _write(self, connection: ServedConnection) -> None:
        connection.send()
        if connection.then is Phase.READING:
            self._go_on(connection)
            return
        connection.say_goodbye()
        if connection.then is None:
            self._close(connection)
        else:
            self._wait_for_client(connection, Phase.LINGERING, _LINGER_S)
            self._watch(connection, selectors.EVENT_READ)

    def _go_on(self, connection: ServedConnection) -> None:
        """Take the next request; some of it may have come before the answer."""
        self._wait_for_client(connection, Phase.READING, self._limits.kept_s)
        self._watch(connection, selectors.EVENT_READ)
        if not connection.is_silent:
            connection.deadline_s = time.monotonic() + self._limits.request_s
            self._take_request(connection)
        elif connection.has_hidden:
            self._read(connection)


def _answer(route: Route, head: Head, body: Body) -> HttpResponse:
    """Compute an answer in the route's thread. It also copies large bodies, one at a time."""
    return route.answer(HttpRequest(head.method, head.path, bytes(body)))
