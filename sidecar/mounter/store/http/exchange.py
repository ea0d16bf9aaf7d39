"""One request of a cloud's SDK, sent as ours are: bounded in time and size, without redirects.

The SDKs' libraries follow redirects with the login in their headers, read answers of any length,
and wait as long as a byte comes now and then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.fields import BrokenResponse, Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import BufferedResponse, SignedRequest
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.units import KIB

MOST_BYTES: Final = 64 * KIB
"""The longest answer with a token in it."""
_SILENCE_S: Final = 5.0
_ANSWERS: Final = frozenset({*range(200, 300), *range(400, 1000)})
_OURS: Final = frozenset({"accept-encoding", "connection", "content-length", "expect", "host"})


def exchange(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: str | bytes | None = None,
    *,
    most_bytes: int = MOST_BYTES,
    most_silence_s: float | None = None,
    verify_tls: bool = True,
) -> BufferedResponse:
    """The answer of a server, whatever its status. Redirects are not followed.

    Args:
        most_silence_s: if it is not the usual one.

    Raises:
        OSError, BrokenResponse, UnsendableRequest: no answer, or none within the bounds.
        ValueError: the URL is not one of HTTP.
        SecretInvalid: as :class:`ConnectionPool`.
    """
    parts = urlsplit(url)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    sent = {name.lower(): value for name, value in headers.items() if name.lower() not in _OURS}
    silence_s = most_silence_s or _SILENCE_S
    client = HttpClient(Endpoint.parse(url, verify_tls=verify_tls), _Untranslated())
    try:
        return client.send(
            None,
            lambda: SignedRequest(method, target, sent),
            (body.encode() if isinstance(body, str) else body or b"",),
            accepted=_ANSWERS,
            timeout=AdaptiveTimeout(silence_s, silence_s),
            most_bytes=most_bytes,
        )
    finally:
        client.close()


class _Untranslated:
    """A :class:`~.client.Translator` that leaves errors to the SDK's module."""

    def refused(self, call: None, response: Response, body: bytes) -> Exception:  # noqa: ARG002
        return BrokenResponse("a redirect")

    def unanswered(self, call: None, error: Exception) -> Exception:  # noqa: ARG002
        return error

    def redirect(self, fields: Headers) -> None:
        """Never."""
