"""Keep-alive connections to one endpoint, one for each request in flight."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sidecar.mounter.store.http.addresses import Address, Addresses
from sidecar.mounter.store.http.connection import Connection, request_head
from sidecar.mounter.store.http.forks import renew_in_child
from sidecar.mounter.store.http.proxies import ProxyFailed, open_tunnel, proxy_for
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout

MAX_CONNECTIONS = 128
"""Twice the most parts in flight, so that other requests need not wait for parts."""
MOST_IDLE_S = 60.0
"""How long an unused connection is kept. A NAT forgets it after four minutes (Azure) or six (AWS),
some firewalls sooner; then the next request gets no answer."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The place of a store.

    Attributes:
        tls: https.
        host: name or address.
        port: TCP port.
        path: prefix of every path, without a slash at its end.
        verify_tls: whether the certificate is checked.
        authorities: PEM file to check it against; empty: :func:`authorities_file`.
        direct: no proxy is on the way, whatever the environment says.
    """

    tls: bool
    host: str
    port: int
    path: str = ""
    verify_tls: bool = True
    authorities: str = ""
    direct: bool = False

    @classmethod
    def parse(cls, url: str, *, verify_tls: bool = True) -> Endpoint:
        """From a URL such as ``http://127.0.0.1:9000``. Raises ValueError if it is no such URL."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("an endpoint must look like https://host or http://host:port")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(tls, parts.hostname, port, parts.path.rstrip("/"), verify_tls)

    @property
    def authority(self) -> str:
        """The ``Host`` header, with the port unless it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def way(self) -> str:
        """What decides whose bytes arrive: who is asked, and who vouches for the answer.

        If nobody vouches, the proxy counts, with its login: do not show this to anybody.
        """
        if self.tls and self.verify_tls:
            file = self.authorities or authorities_file()
            known = file == _public_authorities()
            vouched = "" if known else hashlib.sha256(Path(file).read_bytes()).hexdigest()
        else:
            proxy = None if self.direct else proxy_for(self.host, self.port, tls=self.tls)
            vouched = f"nobody, through {'' if proxy is None else proxy.url}"
        return f"{'https' if self.tls else 'http'}://{self}{self.path} {vouched}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class ConnectionPool:
    """At most ``MAX_CONNECTIONS`` connections; further callers wait for one.

    Starts no thread. In a forked child it is empty, and the parent's connections stay whole.

    Attributes:
        proxy: on the way to the endpoint; None: no proxy.

    Raises:
        SecretInvalid: as from :func:`proxy_for`.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.proxy = (
            None if endpoint.direct else proxy_for(endpoint.host, endpoint.port, tls=endpoint.tls)
        )
        self._tls = _tls_context(endpoint) if endpoint.tls else None
        reached = self.proxy or endpoint
        self._addresses = Addresses(reached.host, reached.port)
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Forget connections without closing them (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._closed = False
        self._idle: list[Connection] = []

    def head(self, method: str, target: str, headers: Mapping[str, str]) -> bytes:
        """A request's line and header on these connections. Raises UnsendableRequest."""
        authority = self._endpoint.authority
        if self.proxy is not None and not self._endpoint.tls:
            # A request that a proxy forwards names its server (RFC 9112, 3.2.2).
            target, headers = f"http://{authority}{target}", {**headers, **self.proxy.fields}
        return request_head(method, target, headers, authority)

    def take(self, timeout: AdaptiveTimeout) -> Connection:
        """A connection for this caller alone.

        A connection is closed if bytes came on it that belong to no request, or if its address is
        to be left alone.

        Args:
            timeout: how long the server may be silent, and how long without progress, once there is
                room for the connection.

        Raises:
            OSError: refused, not resolved, not trusted, too slow.
        """
        self._slots.acquire()
        while True:
            try:
                # list.pop is atomic, and the last one used is the most likely to be open still.
                connection = self._idle.pop()
            except IndexError:
                return self._new(timeout.timeout_s, timeout.limit_s)
            if self._begin(connection, timeout):
                return connection

    def take_second(self, timeout: AdaptiveTimeout, first: Connection) -> Connection | None:
        """Another connection for the same request, to another address if possible; None: none.

        Waits for no other request, and for an answer no longer than ``timeout``.
        """
        if not self._slots.acquire(blocking=False):
            return None
        for connection in sorted(self._idle, key=lambda idle: idle.address is first.address):
            try:
                self._idle.remove(connection)
            except ValueError:  # another thread took it
                continue
            if self._begin(connection, timeout):
                return connection
        with contextlib.suppress(OSError):
            return self._new(timeout.timeout_s, timeout.timeout_s, first.address)
        return None

    def give_back(self, connection: Connection) -> None:
        """Return a connection whose response was read to its end."""
        connection.rest()
        self._idle.append(connection)
        self._slots.release()
        self._close_idle(0.0 if self._closed else MOST_IDLE_S)

    def discard(self, connection: Connection) -> None:
        """Close a connection that is in an unknown state."""
        connection.close()
        self._slots.release()

    def close(self) -> None:
        """Keep no connection: those in use are closed when their requests end."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close all unused connections. After one was found dead, others likely are."""
        self._close_idle(0.0)

    def _close_idle(self, least_s: float) -> None:
        """Close those that nobody has used for so long. The last one used is at the end."""
        with contextlib.suppress(IndexError):  # the list is empty, or another thread took it
            while time.monotonic() - self._idle[0].idle_since_s >= least_s:
                self._idle.pop(0).close()

    def _begin(self, connection: Connection, timeout: AdaptiveTimeout) -> bool:
        """Use an idle connection. If it cannot be used, close it and return False."""
        is_old = time.monotonic() - connection.idle_since_s > MOST_IDLE_S
        if not is_old and connection.is_quiet and not self._addresses.rests(connection.address):
            connection.begin(timeout.timeout_s, timeout.limit_s)
            return True
        connection.close()
        return False

    def _new(
        self, timeout_s: float, limit_s: float, other_than: Address | None = None
    ) -> Connection:
        try:
            return self._connect(timeout_s, limit_s, other_than)
        except BaseException:
            self._slots.release()
            raise

    def _connect(self, timeout_s: float, limit_s: float, other_than: Address | None) -> Connection:
        endpoint, proxy = self._endpoint, self.proxy
        until_s = time.monotonic() + limit_s
        try:
            sock, address = self._addresses.connect(timeout_s, until_s, other_than)
        except OSError as error:
            if proxy is None:
                raise
            raise ProxyFailed(proxy) from error
        try:
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if proxy is not None and self._tls is not None:
                open_tunnel(sock, endpoint.host, endpoint.port, proxy, until_s)
            if self._tls is not None:
                sock = self._tls.wrap_socket(
                    sock, server_hostname=endpoint.host, session=address.session
                )
            return Connection(sock, address, timeout_s, limit_s)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                address.failed()
            raise


def authorities_file() -> str:
    """PEM file of the authorities for checking certificates.

    ``SSL_CERT_FILE``, else ``AWS_CA_BUNDLE``, which users of S3 know, else certifi's, because
    a slim image has none.
    """
    given = os.environ.get("SSL_CERT_FILE") or os.environ.get("AWS_CA_BUNDLE")
    return given or _public_authorities()


def _public_authorities() -> str:
    import certifi

    return certifi.where()


def _tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=endpoint.authorities or authorities_file())
    if not endpoint.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
