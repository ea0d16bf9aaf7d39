"""Keep-alive connections to one endpoint, one for each request under way."""

from __future__ import annotations

import os
import ssl
import threading
import urllib.parse
from dataclasses import dataclass

from sidecar.mounter.store.http.connection import Connection
from sidecar.mounter.store.http.forks import renew_in_child

MAX_CONNECTIONS = 64
SOCKET_TIMEOUT_S = 5.0
"""Longest that a connection may bring no byte (:class:`AdaptiveTimeout`)."""
SHORTEST_TIMEOUT_S = 0.5

_LONGEST_FACTOR = 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a store is.

    Attributes:
        tls: https.
        host: name or address.
        port: TCP port.
        path: what stands before every path, without a slash at its end.
        verify_tls: whether the certificate is checked.
    """

    tls: bool
    host: str
    port: int
    path: str = ""
    verify_tls: bool = True

    @classmethod
    def parse(cls, url: str, *, verify_tls: bool = True) -> Endpoint:
        """From a URL such as ``http://127.0.0.1:9000``. Raises ValueError if it is not one."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("an endpoint must look like https://host or http://host:port")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(tls, parts.hostname, port, parts.path.rstrip("/"), verify_tls)

    @property
    def authority(self) -> str:
        """The ``Host`` header: the port stands there unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class AdaptiveTimeout:
    """How long to wait for a silent connection before the request goes out again on another.

    As TCP estimates its retransmission time-out (RFC 6298): a moving mean of the time to the
    first byte and of its deviation, which together lie above nearly all answers; three times
    that, because a needless request costs more than a segment. Each stall doubles it until
    an answer comes, so that a store which became slow is not hammered. Threads update it
    without a lock: a lost sample does no harm.

    Args:
        steady_s: always this long instead, for requests whose usual time says nothing.
    """

    def __init__(self, *, steady_s: float | None = None) -> None:
        self._steady_s = steady_s
        self._mean_s: float | None = None
        self._deviation_s = 0.0
        self._factor = 1

    @property
    def timeout_s(self) -> float:
        """Between ``SHORTEST_TIMEOUT_S`` and ``SOCKET_TIMEOUT_S``, and that before any answer."""
        if self._steady_s is not None:
            return self._steady_s
        if self._mean_s is None:
            return SOCKET_TIMEOUT_S
        usual_s = max(3 * (self._mean_s + 4 * self._deviation_s), SHORTEST_TIMEOUT_S)
        return min(usual_s * self._factor, SOCKET_TIMEOUT_S)

    def answered(self, seconds: float) -> None:
        """The first byte came after ``seconds``."""
        if self._mean_s is None:
            self._mean_s, self._deviation_s = seconds, seconds / 2
        else:
            self._deviation_s += (abs(seconds - self._mean_s) - self._deviation_s) / 4
            self._mean_s += (seconds - self._mean_s) / 8
        self._factor = 1

    def stalled(self) -> None:
        """Nothing came in time."""
        self._factor = min(self._factor * 2, _LONGEST_FACTOR)


class ConnectionPool:
    """At most ``MAX_CONNECTIONS`` connections; further callers wait for one.

    Starts no thread. In a forked child it is empty, and the parent's connections stay whole.

    Attributes:
        authority: the ``Host`` header of a request.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.authority = endpoint.authority
        self._endpoint = endpoint
        self._tls = _tls_context(endpoint.verify_tls) if endpoint.tls else None
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Forget connections without closing them (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False
        self._idle: list[Connection] = []

    def take(self, timeout_s: float) -> tuple[Connection, bool]:
        """A connection of one's own, and whether it was used before.

        Args:
            timeout_s: how long it may be silent.

        Raises:
            OSError: as :class:`Connection`.
        """
        self._slots.acquire()
        try:
            # list.pop is atomic, and the last one used is the most likely to be still open.
            connection = self._idle.pop()
        except IndexError:
            return self._new(timeout_s), False
        connection.set_timeout(timeout_s)
        return connection, True

    def give_back(self, connection: Connection) -> None:
        """Return one whose response was read to its end."""
        self._idle.append(connection)
        self._slots.release()
        if self._closed:
            self.close_idle()

    def discard(self, connection: Connection) -> None:
        """Close one that is in an unknown state."""
        connection.close()
        self._slots.release()

    def close(self) -> None:
        """Keep no connection any more: what is under way ends, and its connection with it."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close what nobody uses: after one was found dead, the others likely are too."""
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:  # another thread took the last one
                return

    def _new(self, timeout_s: float) -> Connection:
        try:
            return Connection(self._endpoint.host, self._endpoint.port, self._tls, timeout_s)
        except BaseException:
            self._slots.release()
            raise


def authorities_file() -> str:
    """PEM file of the authorities that certificates are checked against.

    ``SSL_CERT_FILE`` for all stores, else what users of S3 know, else the Python package's,
    because a slim image has none of its own.
    """
    given = os.environ.get("SSL_CERT_FILE") or os.environ.get("AWS_CA_BUNDLE")
    if given:
        return given
    import certifi

    return certifi.where()


def _tls_context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authorities_file())
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
