"""The bucket of all contenders: where it is, and clients of it that share no code with ours.

The clients are the clouds' own, and MinIO's for S3. Names are below the data set's prefix.
"""

# ruff: noqa: D102 - the protocol documents the methods.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.error import S3Error
from minio.signer import presign_v4
from minio.time import utcnow

from benchmarks.failure import BenchFailure
from benchmarks.networks import StoreName
from sidecar.units import MIB

BUCKET = "bench"
PREFIX = "data/"
REGION = "us-east-1"
PART_BYTES = 8 * MIB

Vendor = Literal["Rclone", "Minio", "Other"]

_SIGNED_FOR = timedelta(days=1)
_STREAMS = 4
"""Parts that an upload sends at once; more do not help on two cores."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The data set's address, and a login that is valid for one run.

    ``authority`` is the CA's certificate file; None: no TLS. ``vendor``: of the S3 server, as
    rclone names it. GCS takes no login; on Azure it is the account's name and key, and the
    bucket is a container.

    The data set is below a prefix because s3fs-fuse cannot mount the root of this server's
    bucket: the answer to ``HEAD bucket//`` looks like a file, and the root gives EIO.
    """

    address: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str = BUCKET
    prefix: str = PREFIX
    region: str = REGION
    authority: Path | None = None
    store: StoreName = "s3"
    vendor: Vendor = "Rclone"

    @property
    def url(self) -> str:
        """The server's root, such as ``http://127.0.0.1:39713``."""
        return f"{'https' if self.authority else 'http'}://{self.address}"

    @property
    def account_url(self) -> str:
        """The account's URL on Azure."""
        return f"{self.url}/{self.access_key}"


class Bucket(Protocol):
    """The objects below the prefix. What fails raises the client's own errors."""

    def make(self) -> None:
        """Make the bucket itself."""

    def presigned(self, name: str) -> str:
        """Path and query of a GET, signed for a day if need be."""

    def listing(self, folder: str, token: str) -> str:
        """Path and query of a LIST of what is directly below a folder, as above.

        ``token`` is from the page before, "" for the first.
        """

    def put(self, name: str, source: Path) -> None:
        """Upload a file as the client does it by itself, in parts of PART_BYTES."""

    def size_bytes(self, name: str) -> int | None:
        """The size of an object; None: it is not there."""

    def read(self, name: str, offset: int, size_bytes: int) -> bytes: ...

    def names(self, folder: str = "") -> Iterator[str]:
        """All names that begin with ``folder``."""

    def delete(self, name: str) -> None: ...


def bucket(endpoint: Endpoint) -> Bucket:
    """An independent client."""
    clients: dict[StoreName, Callable[[Endpoint], Bucket]]
    clients = {"s3": _S3, "gcs": _Gcs, "azure": _Azure}
    return clients[endpoint.store](endpoint)


class _S3:
    def __init__(self, endpoint: Endpoint) -> None:
        self._at = endpoint
        self._client = Minio(
            endpoint=endpoint.address,
            access_key=endpoint.access_key,
            secret_key=endpoint.secret_key,
            secure=endpoint.authority is not None,
            http_client=_pool(endpoint.authority) if endpoint.authority else None,
            region=endpoint.region,
        )

    def make(self) -> None:
        self._client.make_bucket(self._at.bucket)

    def presigned(self, name: str) -> str:
        url = urlsplit(
            self._client.presigned_get_object(
                self._at.bucket, self._at.prefix + name, expires=_SIGNED_FOR
            )
        )
        return f"{url.path}?{url.query}"

    def listing(self, folder: str, token: str) -> str:
        prefix = self._at.prefix + folder
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/", "max-keys": "1000"}
        if token:
            query["continuation-token"] = token
        url = presign_v4(
            method="GET",
            url=urlsplit(f"{self._at.url}/{self._at.bucket}?{_encoded(query)}"),
            region=self._at.region,
            credentials=Credentials(self._at.access_key, self._at.secret_key),
            date=utcnow(),
            expires=int(_SIGNED_FOR.total_seconds()),
        )
        return f"{url.path}?{url.query}"

    def put(self, name: str, source: Path) -> None:
        self._client.fput_object(
            self._at.bucket, self._at.prefix + name, str(source), part_size=PART_BYTES
        )

    def size_bytes(self, name: str) -> int | None:
        try:
            found = self._client.stat_object(self._at.bucket, self._at.prefix + name)
        except S3Error as error:
            if error.code in {"NoSuchKey", "NoSuchObject"}:
                return None
            raise BenchFailure(f"`{name}`: {error.code}") from None
        return int(found.size or 0)

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        answer = self._client.get_object(
            self._at.bucket, self._at.prefix + name, offset=offset, length=size_bytes
        )
        try:
            content: bytes = answer.read()
        finally:
            answer.release_conn()
        return content

    def names(self, folder: str = "") -> Iterator[str]:
        start = self._at.prefix + folder
        for one in self._client.list_objects(self._at.bucket, prefix=start, recursive=True):
            yield str(one.object_name).removeprefix(self._at.prefix)

    def delete(self, name: str) -> None:
        self._client.remove_object(self._at.bucket, self._at.prefix + name)


class _Gcs:
    def __init__(self, endpoint: Endpoint) -> None:
        self._at = endpoint

    @cached_property
    def _client(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        return storage.Client(
            project="bench",
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": self._at.url},
        )

    def _blob(self, name: str) -> Any:
        return self._client.bucket(self._at.bucket).blob(self._at.prefix + name)

    def make(self) -> None:
        self._client.create_bucket(self._at.bucket)

    def presigned(self, name: str) -> str:
        key = quote(self._at.prefix + name, safe="")
        return f"/download/storage/v1/b/{self._at.bucket}/o/{key}?alt=media"

    def listing(self, folder: str, token: str) -> str:
        query = {"prefix": self._at.prefix + folder, "delimiter": "/", "maxResults": "1000"}
        if token:
            query["pageToken"] = token
        return f"/storage/v1/b/{self._at.bucket}/o?{_encoded(query)}"

    def put(self, name: str, source: Path) -> None:
        # One stream: this server takes no uploads in parts, which the client could send at once.
        self._blob(name).upload_from_filename(str(source))

    def size_bytes(self, name: str) -> int | None:
        found = self._client.bucket(self._at.bucket).get_blob(self._at.prefix + name)
        return None if found is None else int(found.size)

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        content: bytes = self._blob(name).download_as_bytes(
            start=offset, end=offset + size_bytes - 1
        )
        return content

    def names(self, folder: str = "") -> Iterator[str]:
        for one in self._client.list_blobs(self._at.bucket, prefix=self._at.prefix + folder):
            yield str(one.name).removeprefix(self._at.prefix)

    def delete(self, name: str) -> None:
        self._blob(name).delete()


class _Azure:
    def __init__(self, endpoint: Endpoint) -> None:
        self._at = endpoint

    @cached_property
    def _container(self) -> Any:
        from azure.storage.blob import ContainerClient

        return ContainerClient(
            self._at.account_url,
            self._at.bucket,
            credential={
                "account_name": self._at.access_key,
                "account_key": self._at.secret_key,
            },
            max_single_put_size=PART_BYTES,
            max_block_size=PART_BYTES,
        )

    @cached_property
    def _signature(self) -> str:
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        return generate_container_sas(
            self._at.access_key,
            self._at.bucket,
            account_key=self._at.secret_key,
            permission=ContainerSasPermissions(read=True, list=True),
            expiry=datetime.now(UTC) + _SIGNED_FOR,
        )

    def make(self) -> None:
        self._container.create_container()

    def presigned(self, name: str) -> str:
        key = quote(self._at.prefix + name)
        return f"/{self._at.access_key}/{self._at.bucket}/{key}?{self._signature}"

    def listing(self, folder: str, token: str) -> str:
        query = {"restype": "container", "comp": "list", "delimiter": "/"}
        query |= {"prefix": self._at.prefix + folder, "marker": token}
        target = f"/{self._at.access_key}/{self._at.bucket}"
        return f"{target}?{_encoded(query)}&{self._signature}"

    def put(self, name: str, source: Path) -> None:
        from azure.core.exceptions import AzureError

        try:
            with source.open("rb") as file:
                self._container.upload_blob(
                    self._at.prefix + name,
                    file,
                    length=source.stat().st_size,
                    overwrite=True,
                    max_concurrency=_STREAMS,
                )
        except AzureError as error:  # Azurite answers a write with 500 now and then
            raise BenchFailure(f"`{name}`: {str(error).splitlines()[0]}") from None

    def size_bytes(self, name: str) -> int | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            found = self._container.get_blob_client(self._at.prefix + name).get_blob_properties()
        except ResourceNotFoundError:
            return None
        return int(found.size)

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        content: bytes = self._container.download_blob(
            self._at.prefix + name, offset=offset, length=size_bytes
        ).readall()
        return content

    def names(self, folder: str = "") -> Iterator[str]:
        for name in self._container.list_blob_names(name_starts_with=self._at.prefix + folder):
            yield str(name).removeprefix(self._at.prefix)

    def delete(self, name: str) -> None:
        self._container.delete_blob(self._at.prefix + name)


def _encoded(query: dict[str, str]) -> str:
    return urlencode(query, quote_via=quote)


def _pool(authority: Path) -> urllib3.PoolManager:
    return urllib3.PoolManager(ca_certs=str(authority), cert_reqs="CERT_REQUIRED")
