"""HTTP proxies between us and a store, as the environment names them.

``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` mean what they mean to the SDKs, which read them,
too: one process serves one bucket, so the variables are this bucket's. A URL may contain a login;
nothing here shows it.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import time
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import SplitResult, unquote, urlsplit

from sidecar.errors import SecretInvalid
from sidecar.units import KIB

PROXY_LOGIN = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
_MAX_ANSWER_BYTES = 16 * KIB
_DEFAULT_PORT = 80


class ProxyFailed(OSError):
    """A proxy does not lead to the store.

    Attributes:
        proxy: its host and port.
        status: of its answer; None if there was no answer.
    """

    def __init__(self, proxy: Proxy, status: int | None = None) -> None:
        super().__init__(f"proxy {proxy}")
        self.proxy = str(proxy)
        self.status = status


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy.

    Attributes:
        url: with the login.
        fields: header fields for the proxy alone: the login.
    """

    host: str
    port: int
    url: str = field(repr=False)
    fields: dict[str, str] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_for(host: str, port: int, *, tls: bool) -> Proxy | None:
    """The proxy on the way to a server; None: no proxy.

    Raises:
        SecretInvalid: the variable is not the URL of a proxy.
    """
    found = _find(host, port, "https" if tls else "http")
    if isinstance(found, str):  # raised here, where no local variable holds the URL
        raise SecretInvalid(
            f"the environment: `{found}` is not http://HOST:PORT, with or without a login"
        )
    return found


def is_proxy(url: object) -> bool:
    """Whether it is ``http://[LOGIN@]HOST[:PORT]``. TLS to a proxy is not supported."""
    return isinstance(url, str) and _parts(url) is not None


def name_exempt_host(host: str) -> None:
    """Add a host to ``NO_PROXY`` if one of its networks has it: not all SDKs take networks."""
    listed = urllib.request.getproxies_environment().get("no")
    if listed and _is_in_a_network(host, listed):
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = f"{listed},{host}"


def open_tunnel(sock: socket.socket, host: str, port: int, proxy: Proxy, until_s: float) -> None:
    """Have the proxy connect to a server (CONNECT, RFC 9110, 9.3.6).

    Args:
        until_s: the deadline (monotonic).

    Raises:
        ProxyFailed: it did not.
        OSError: no answer.
    """
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    sock.sendall(_connect_request(authority, proxy))
    answer = b""
    while b"\r\n\r\n" not in answer:
        if time.monotonic() > until_s:
            raise TimeoutError("the proxy makes no progress")
        more = sock.recv(4096)
        if not more or len(answer) > _MAX_ANSWER_BYTES:
            raise ProxyFailed(proxy)
        answer += more
    version, _, rest = answer.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit() or not rest[:3].isascii():
        raise ProxyFailed(proxy)
    status = int(rest[:3])
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        raise ProxyFailed(proxy, status)
    if not answer.endswith(b"\r\n\r\n"):  # bytes of the server before ours are not expected
        raise ProxyFailed(proxy)


def _find(host: str, port: int, scheme: str) -> Proxy | str | None:
    """As :func:`proxy_for`; or the name of a variable that is not the URL of a proxy."""
    proxies = urllib.request.getproxies_environment()
    url = proxies.get(scheme)
    if not url or _is_exempt(host, port, proxies):
        return None
    parts = _parts(url)
    if parts is None:
        return f"{scheme.upper()}_PROXY"
    return Proxy(str(parts.hostname), parts.port or _DEFAULT_PORT, url, _login_fields(parts))


def _connect_request(authority: str, proxy: Proxy) -> bytes:
    lines = [f"CONNECT {authority} HTTP/1.1", f"host: {authority}"]
    lines += [f"{name}: {value}" for name, value in proxy.fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    bare = parts.path in {"", "/"} and not parts.query and not parts.fragment
    return parts if usable and bare and url.isascii() and url.isprintable() else None


def _login_fields(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"proxy-authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _is_exempt(host: str, port: int, proxies: dict[str, str]) -> bool:
    listed = proxies.get("no", "")
    named: bool = urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
        f"{host}:{port}", proxies
    )
    return named or _is_in_a_network(host, listed)


def _is_in_a_network(host: str, listed: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for item in listed.split(","):
        try:
            if "/" in item and address in ipaddress.ip_network(item.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False
