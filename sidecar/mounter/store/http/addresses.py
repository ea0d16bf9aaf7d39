"""All addresses of a name, over which connections are spread.

A store's name has addresses that change within seconds, and glibc does not say how long an answer
is valid. So the name is resolved again now and then, beside the requests. An address that refuses
or is silent is left alone for a while, as long as there are others
(docs/decisions/0063-all-addresses-of-a-name.md).
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from sidecar.mounter.store.http.forks import renew_in_child

FRESH_S = 30.0
"""The age at which the resolver's answer is asked for again."""
NEXT_AFTER_S = 0.25
"""How long one address is tried before the next one, too ("Happy Eyeballs", RFC 8305, 5)."""
FIRST_REST_S = 10.0
LONGEST_REST_S = 160.0
SLOW_REQUESTS = 3
"""After so many in a row an address is left alone."""
_MOST_ADDRESSES = 64


class Address:
    """One address of a name. Threads update it without a lock: a lost count does no harm.

    Attributes:
        where: family, and address in that family's form for sockets.
        rests_until_s: until when it is left alone (monotonic).
        session: of TLS, for the next connection; None: no session.
    """

    __slots__ = ("_failures", "_slow_requests", "rests_until_s", "session", "where")

    def __init__(self, where: tuple[int, tuple[Any, ...]]) -> None:
        self.where = where
        self._failures = self._slow_requests = 0
        self.rests_until_s = -math.inf
        self.session: ssl.SSLSession | None = None

    def begin(self) -> socket.socket:
        """A socket that is connecting to it and does not block. Raises OSError."""
        family, where = self.where
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        error = sock.connect_ex(where)
        if error in {0, errno.EINPROGRESS}:
            return sock
        sock.close()
        raise OSError(error, os.strerror(error))

    def answered(self) -> None:
        """Note that a request got an answer: the address is well."""
        self._failures = self._slow_requests = 0
        self.rests_until_s = -math.inf

    def was_slow(self) -> None:
        """Note that a request was sent again and got its answer elsewhere first."""
        self._slow_requests += 1
        if self._slow_requests >= SLOW_REQUESTS:
            self.failed()

    def failed(self) -> None:
        """Note that a connection, or a request's answer, did not come in time."""
        rest_s = min(FIRST_REST_S * 2**self._failures, LONGEST_REST_S)
        self._failures = min(self._failures + 1, 10)
        self.rests_until_s = time.monotonic() + rest_s


class Addresses:
    """The addresses of one host. Safe to use from any thread, and in a forked child.

    Args:
        host: name or address.
        port: TCP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._known: list[Address] = []
        self._asked_s = -math.inf
        self._turn = 0
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Make the lock anew, and begin with another address (see :mod:`.forks`)."""
        self._asking = threading.Lock()
        random.shuffle(self._known)

    def connect(
        self, timeout_s: float, until_s: float, other_than: Address | None = None
    ) -> tuple[socket.socket, Address]:
        """A connected socket that does not block, and its address.

        Args:
            timeout_s: how long the last address that is tried may take.
            until_s: the end, however many addresses there are (monotonic). Resolving the name has
                the system's limits (resolv.conf(5)).
            other_than: an address that is tried last.

        Raises:
            OSError: the name is not resolved, or no address takes the connection.
        """
        if self._known:
            if time.monotonic() - self._asked_s > FRESH_S and self._asking.acquire(blocking=False):
                self._run_beside(self._ask_again)
            try:
                return self._try(timeout_s, until_s, other_than)
            except OSError:
                if not self._ask():
                    raise
        else:
            self._ask()
        return self._try(timeout_s, until_s, other_than)

    def rests(self, address: Address) -> bool:
        """Whether an address is to be left alone while others are not."""
        now_s = time.monotonic()
        return address.rests_until_s > now_s and any(
            other.rests_until_s <= now_s for other in self._known
        )

    def _ask(self) -> bool:
        """Resolve the name; whether an address is new. Raises OSError."""
        found = socket.getaddrinfo(self._host, self._port, 0, socket.SOCK_STREAM)
        before = {address.where: address for address in self._known}
        places = {(family, where) for family, _, _, _, where in found[:_MOST_ADDRESSES]}
        known = [before.get(where) or Address(where) for where in places]
        random.shuffle(known)  # other processes got the same order
        self._known, self._asked_s = known, time.monotonic()
        return not places <= before.keys()

    def _ask_again(self) -> None:
        self._asked_s = time.monotonic()  # also without an answer: the old one stays
        try:
            with contextlib.suppress(OSError):
                self._ask()
        finally:
            self._asking.release()

    def _run_beside(self, work: Callable[[], None]) -> None:
        try:
            threading.Thread(target=work, name="resolver", daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._asking.release()

    def _try(
        self, timeout_s: float, until_s: float, other_than: Address | None
    ) -> tuple[socket.socket, Address]:
        self._turn += 1
        known, now_s = self._known, time.monotonic()
        turn = self._turn % len(known)
        race = _Race()
        try:
            for address in sorted(
                known[turn:] + known[:turn],
                key=lambda address: (max(address.rests_until_s, now_s), address is other_than),
            ):
                race.begin(address)
                won = race.wait(min(NEXT_AFTER_S, timeout_s))
                if won is not None:
                    return won
                if time.monotonic() > until_s:
                    break
            won = race.wait(min(timeout_s - NEXT_AFTER_S, until_s - time.monotonic()))
            if won is not None:
                return won
            raise race.failure
        finally:
            race.end()


class _Race:
    """Connections that are being made at once. The first one is taken."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[socket.socket, Address, float]] = {}
        self._poll = select.poll()
        self.failure: OSError = TimeoutError("no address answers")

    def begin(self, address: Address) -> None:
        """Begin one more connection."""
        try:
            sock = address.begin()
        except OSError as error:
            self.failure = error
            address.failed()
        else:
            self._begun[sock.fileno()] = sock, address, time.monotonic()
            self._poll.register(sock, select.POLLOUT)

    def wait(self, seconds: float) -> tuple[socket.socket, Address] | None:
        """The first connection that is made; None if none is in time, or all have failed."""
        ends_s = time.monotonic() + seconds
        while self._begun:
            left_s = ends_s - time.monotonic()
            events = self._poll.poll(max(0.0, left_s) * 1000)
            for descriptor, _ in events:
                self._poll.unregister(descriptor)
                sock, address, _ = self._begun.pop(descriptor)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not error:
                    return sock, address
                sock.close()
                address.failed()
                self.failure = OSError(error, os.strerror(error))
            if not events:
                break
        return None

    def end(self) -> None:
        """Close unfinished connections. An address that had its time has failed."""
        for sock, address, begun_s in self._begun.values():
            sock.close()
            if time.monotonic() - begun_s >= NEXT_AFTER_S:
                address.failed()
