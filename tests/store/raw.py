"""Each cloud's store on a server that answers as a test says, and answers that are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.mounter.store import open_store
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.credentials import Credentials
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.http.connection import Connection
from sidecar.mounter.store.http.pool import ConnectionPool, Endpoint
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.mounter.store.interface import Store, StoreObserver
from sidecar.mounter.store.s3.credentials import S3Credentials

CLOUDS: tuple[StoreName, ...] = ("s3", "gcs", "azure")
BODY = bytes(range(200))
VERSION = "17"
"""The version of every object here. It is a number, as a generation must be."""
_URLS = {"s3": "s3://bucket", "gcs": "gs://bucket", "azure": "wasbs://bucket@a.example"}


class FixedCredentials:
    """Credentials that never change."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def current(self) -> Credentials:
        return self._credentials

    def refresh(self) -> bool:
        return False


def open_at(
    kind: StoreName,
    endpoint: str,
    observer: StoreObserver,
    *,
    retry_budget_s: float = 0.0,
    prefix: str = "",
    with_metadata: bool = False,
) -> Store:
    """A store whose server is at ``endpoint``, without a login where there is none."""
    credentials: Credentials
    if kind == "s3":
        credentials = S3Credentials(
            access_key_id="key", secret_access_key="secret", endpoint_url=endpoint
        )
    elif kind == "gcs":
        credentials = GcsCredentials(endpoint_url=endpoint, anonymous=True)
    else:
        credentials = AzureCredentials(
            account_name="account", account_key="a2V5", blob_endpoint=f"{endpoint}/account"
        )
    return open_store(
        StoreSource(store=kind, url=_URLS[kind], bucket="bucket", prefix=prefix),
        FixedCredentials(credentials),
        retry_budget_s=retry_budget_s,
        observer=observer,
        with_metadata=with_metadata,
    )


def connect(
    host: str,
    port: int,
    timeout_s: float = 5.0,
    limit_s: float = 60.0,
    *,
    authorities: Path | None = None,
) -> Connection:
    """A connection of the product's; over TLS if there are authorities. Raises OSError."""
    tls = authorities is not None
    endpoint = Endpoint(tls, host, port, authorities=str(authorities or ""), direct=True)
    timeout = AdaptiveTimeout(timeout_s, timeout_s)
    timeout.limit_s = limit_s
    return ConnectionPool(endpoint).take(timeout)


class Entry(NamedTuple):
    """An entry of a listing, as the server writes it."""

    key: str
    size: str = "5"
    time: str = ""
    version: str = VERSION


def page(
    kind: StoreName, entries: Sequence[Entry] = (), token: str = "", prefixes: Sequence[str] = ()
) -> bytes:
    """The document of a page."""
    if kind == "gcs":
        items = [
            {
                "name": entry.key,
                "size": entry.size,
                "timeCreated": entry.time or "2026-11-24T10:20:30.123Z",
                "generation": entry.version,
            }
            for entry in entries
        ]
        document = {"kind": "storage#objects", "items": items, "prefixes": list(prefixes)}
        return json.dumps({**document, **({"nextPageToken": token} if token else {})}).encode()
    write = _s3_entry if kind == "s3" else _azure_entry
    objects = "".join(map(write, entries))
    if kind == "s3":
        begun = "".join(f"<CommonPrefixes><Prefix>{p}</Prefix></CommonPrefixes>" for p in prefixes)
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        text = f"<ListBucketResult>{objects}{begun}{more}</ListBucketResult>"
    else:
        begun = "".join(f"<BlobPrefix><Name>{p}</Name></BlobPrefix>" for p in prefixes)
        text = (
            f"<EnumerationResults><Blobs>{objects}{begun}</Blobs>"
            f"<NextMarker>{token}</NextMarker></EnumerationResults>"
        )
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


def _s3_entry(entry: Entry) -> str:
    return (
        f"<Contents><Key>{escape(entry.key)}</Key><Size>{entry.size}</Size>"
        f"<LastModified>{entry.time or '2026-11-24T10:20:30.000Z'}</LastModified>"
        f"<ETag>&quot;{entry.version}&quot;</ETag></Contents>"
    )


def _azure_entry(entry: Entry) -> str:
    return (
        f"<Blob><Name>{escape(entry.key)}</Name><Properties>"
        f"<Last-Modified>{entry.time or 'Tue, 24 Nov 2026 10:20:30 GMT'}</Last-Modified>"
        f"<Etag>{entry.version}</Etag><Content-Length>{entry.size}</Content-Length>"
        f"</Properties></Blob>"
    )


def response(
    body: bytes = b"", *, status: str = "200 OK", length: int | None = None, **fields: str
) -> bytes:
    """A response; ``_`` in names of fields stands for ``-``."""
    fields = {"Content_Length": str(len(body) if length is None else length), **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body


def content(
    body: bytes = BODY[:100], *, offset: int = 0, total: int = len(BODY), **fields: str
) -> bytes:
    """The response to a GET of a range."""
    span = f"bytes {offset}-{offset + len(body) - 1}/{total}"
    about = {"ETag": f'"{VERSION}"', "x_goog_generation": VERSION, "Content_Range": span}
    return response(body, status="206 Partial Content", **{**about, **fields})


def fetch(store: Store, size: int = 100, offset: int = 0) -> bytes:
    """The bytes of a range."""
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: store.get_range("key", VERSION, offset, buffer)])
