"""Signs requests in their headers, so that no signed URL can leak. Standard library only.

A signature takes about 20 µs, and a worker that only reads imports no SDK for it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import logging
import re
import time
import urllib.parse
from collections.abc import Mapping
from email.utils import formatdate

AZURE_API_VERSION = "2021-12-02"

_UNSIGNED = "UNSIGNED-PAYLOAD"
_BLANKS = re.compile(r"[ \t]+")
_MOST_SKEW_S = 300.0
"""Stores accept a quarter of an hour."""

log = logging.getLogger(__name__)


class _Clock:
    """The time that requests are signed with.

    Attributes:
        ahead_s: how far it is ahead of the node's clock; 0 until a store objects.
    """

    ahead_s = 0.0

    def now_s(self) -> float:
        return time.time() + self.ahead_s

    def follow(self, store_s: float) -> None:
        """Use a store's clock from now on, if ours is wrong.

        Args:
            store_s: its time, seconds since the epoch.
        """
        ahead_s = store_s - time.time()
        if abs(ahead_s - self.ahead_s) > _MOST_SKEW_S:
            self.ahead_s = ahead_s
            log.warning("requests are signed by the store's clock: the node's is %+.0f s", -ahead_s)


clock = _Clock()


def quote_path(path: str) -> str:
    """A path as in a request line and a signature: ``/`` kept, the rest RFC 3986."""
    return urllib.parse.quote(path, safe="/~-._")


def quote_query(query: Mapping[str, str]) -> str:
    """A query as in a request line and a signature: sorted, RFC 3986."""
    return "&".join(
        f"{name}={urllib.parse.quote(value, safe='~-._')}" for name, value in sorted(query.items())
    )


def sigv4_headers(
    *,
    host: str,
    path: str,
    query: str = "",
    region: str,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None,
    method: str = "GET",
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers that sign a request for S3.

    Host, date, path and token are signed; ``Range`` and ``If-Match`` may be added freely. The
    body is not: reading it twice would cost as much as sending it.
    Source: AWS Signature Version 4, "Authenticating requests: using the Authorization header".

    Args:
        host: as in the ``Host`` header, with the port unless it is the scheme's own.
        path: quoted with :func:`quote_path`.
        query: made with :func:`quote_query`.
        more: additional headers, lower case: ``content-type`` and ``x-amz-…``, which must all
            be signed. Bytes that are not ASCII are in them as Latin-1.
    """
    now = _timestamp(int(clock.now_s()))
    day = now[:8]
    headers = {"host": host, "x-amz-content-sha256": _UNSIGNED, "x-amz-date": now}
    if session_token:
        headers["x-amz-security-token"] = session_token
    headers = dict(sorted({**headers, **(more or {})}.items()))
    names = ";".join(headers)
    canonical_headers = "".join(f"{name}:{_one_spaced(value)}\n" for name, value in headers.items())
    canonical = f"{method}\n{path}\n{query}\n{canonical_headers}\n{names}\n{_UNSIGNED}"
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}"
    key = _sigv4_key(secret_access_key, day, region)
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return headers


@functools.lru_cache(maxsize=2)
def _timestamp(now_s: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))


@functools.lru_cache(maxsize=4)
def _sigv4_key(secret_access_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_access_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def shared_key_headers(
    *,
    path: str,
    account: str,
    account_key: str,
    query: Mapping[str, str] | None = None,
    byte_range: str = "",
    if_match: str = "",
    method: str = "GET",
    length: int = 0,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """All headers of a signed request for Azure.

    Source: "Authorize with Shared Key", Blob service, version 2015-02-21 and later.

    Args:
        path: of the URL, quoted; behind an emulator it begins with the account's name.
        account_key: base64, as Azure shows it.
        query: not quoted; names in lower case.
        length: of the body.
        more: additional headers: ``x-ms-…``, ``content-type``, ``if-none-match``, in lower case
            except names of metadata.
    """
    headers = {**azure_headers(byte_range=byte_range, if_match=if_match), **(more or {})}
    resource = "".join(f"\n{name}:{value}" for name, value in sorted((query or {}).items()))
    # Blanks stay as they are. The documentation joins them; its clients and servers do not.
    fields = "".join(
        f"{name}:{value.strip()}\n"
        for name, value in sorted((name.lower(), value) for name, value in headers.items())
        if name.startswith("x-ms-")
    )
    to_sign = (
        # Verb, content encoding, language, length, MD5, type, date, if-modified-since.
        f"{method}\n\n\n{length or ''}\n\n{headers.get('content-type', '')}\n\n\n"
        f"{headers.get('if-match', '')}\n{headers.get('if-none-match', '')}\n\n{byte_range}\n"
        f"{fields}/{account}{path}{resource}"
    )
    signature = hmac.digest(base64.b64decode(account_key), to_sign.encode(), "sha256")
    headers["authorization"] = f"SharedKey {account}:{base64.b64encode(signature).decode()}"
    return headers


def _one_spaced(value: str) -> str:
    """A value as signatures have it. Only ASCII spaces: others may be part of a letter in UTF-8."""
    value = value.strip(" \t")
    return _BLANKS.sub(" ", value) if "  " in value or "\t" in value else value


def azure_headers(*, byte_range: str = "", if_match: str = "") -> dict[str, str]:
    """The headers of a request for Azure without a signature."""
    headers = {
        "x-ms-date": formatdate(clock.now_s(), usegmt=True),
        "x-ms-version": AZURE_API_VERSION,
    }
    if byte_range:
        headers["range"] = byte_range
    if if_match:
        headers["if-match"] = if_match
    return headers
