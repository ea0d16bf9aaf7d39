"""One interface to the three clouds, with clients that share no code with the product."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.errors import SidecarError
from sidecar.mounter.store import open_store
from sidecar.mounter.store.credentials import VolumeCredentials
from sidecar.mounter.store.interface import Store, StoreObserver
from tests.support.servers import AzureServer, GcsServer, RcloneServer, S3Server

Bytes = bytes | bytearray | memoryview


class CountingObserver:
    """Records what a store reports.

    Attributes:
        requests: (operation, code) of each request.
        retries: (operation, reason) of each retry.
        failures: (operation, code) of each call that failed.
        left_out: why, for each entry that a listing does not show.
        throttled_s: for how long requests were held back.
    """

    def __init__(self) -> None:
        self.throttled_s = 0.0
        self.failures: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.retries: list[tuple[str, str]] = []

    def request(self, operation: str, seconds: float, code: str) -> None:
        assert seconds >= 0
        self.requests.append((operation, code))

    def retried(self, operation: str, reason: str) -> None:
        self.retries.append((operation, reason))

    def throttled(self, seconds: float) -> None:
        self.throttled_s += seconds

    def hidden(self, reason: str) -> None:
        self.left_out.append(reason)

    def failed(self, operation: str, error: SidecarError) -> None:
        self.failures.append((operation, error.code))


class Cloud(ABC):
    """A bucket on a running server, and access to it with an independent client."""

    name: StoreName

    def __init__(self, server: S3Server | GcsServer | AzureServer, bucket: str):
        self.server = server
        self.bucket = bucket

    @abstractmethod
    def url(self, prefix: str = "") -> str:
        """The bucket's URL as in a catalogue."""

    @abstractmethod
    def write(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None: ...

    @abstractmethod
    def read(self, key: str) -> bytes: ...

    @abstractmethod
    def metadata(self, key: str) -> dict[str, str]: ...

    @abstractmethod
    def keys(self) -> list[str]: ...

    @abstractmethod
    def delete(self, key: str) -> None: ...

    def source(self, prefix: str = "", bucket: str | None = None) -> StoreSource:
        """The bucket in a spec; its secret is ``cloud/key.json``."""
        return StoreSource(
            store=self.name,
            url=self.url(prefix),
            bucket=bucket or self.bucket,
            prefix=prefix,
            secret="cloud",
            secret_key="key.json",
        )

    def write_secret(self, secrets_root: Path, content: str | None = None) -> None:
        """Write the secret's file, ``cloud/key.json``."""
        folder = secrets_root / "cloud"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key.json").write_text(
            self.server.credentials_json() if content is None else content
        )

    def open(
        self,
        secrets_root: Path,
        prefix: str = "",
        *,
        bucket: str | None = None,
        retry_budget_s: float = 20.0,
        observer: StoreObserver | None = None,
        with_metadata: bool = False,
    ) -> Store:
        """The product's store, with the secret from :meth:`write_secret`."""
        source = self.source(prefix, bucket)
        return open_store(
            source,
            VolumeCredentials(source, str(secrets_root)),
            retry_budget_s=retry_budget_s,
            observer=observer or CountingObserver(),
            with_metadata=with_metadata,
        )


class S3Cloud(Cloud):
    name = "s3"
    server: S3Server

    def url(self, prefix: str = "") -> str:
        return f"s3://{self.bucket}/{prefix}"

    def write(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        self.server.client().put_object(
            self.bucket, key, io.BytesIO(data), len(data), metadata=dict(metadata or {})
        )

    def read(self, key: str) -> bytes:
        response = self.server.client().get_object(self.bucket, key)
        try:
            content: bytes = response.read()
        finally:
            response.close()
            response.release_conn()
        return content

    def metadata(self, key: str) -> dict[str, str]:
        headers = self.server.client().stat_object(self.bucket, key).metadata
        start = "x-amz-meta-"
        return {
            name.lower().removeprefix(start): value
            for name, value in headers.items()
            if name.lower().startswith(start)
        }

    def keys(self) -> list[str]:
        found = self.server.client().list_objects(self.bucket, recursive=True)
        names = (item.object_name for item in found)
        # Without the gateway's own directories, which a bulk delete leaves behind.
        return sorted(name for name in names if not name.endswith("/"))

    def delete(self, key: str) -> None:
        self.server.client().remove_object(self.bucket, key)


class RcloneCloud(Cloud):
    """Buckets are folders; the independent client is the local file system."""

    name = "s3"
    server: RcloneServer

    def url(self, prefix: str = "") -> str:
        return f"s3://{self.bucket}/{prefix}"

    def write(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        assert not metadata
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def read(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def metadata(self, key: str) -> dict[str, str]:
        return {}

    def keys(self) -> list[str]:
        root = self.server.data / self.bucket
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())

    def delete(self, key: str) -> None:
        self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self.server.data / self.bucket / key


class GcsCloud(Cloud):
    """Its tests must set ``STORAGE_EMULATOR_HOST`` to the server's endpoint."""

    name = "gcs"
    server: GcsServer

    def url(self, prefix: str = "") -> str:
        return f"gs://{self.bucket}/{prefix}"

    def write(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        blob = self.server.client().bucket(self.bucket).blob(key)
        blob.metadata = dict(metadata or {})
        blob.upload_from_string(data)

    def read(self, key: str) -> bytes:
        content: bytes = self.server.client().bucket(self.bucket).blob(key).download_as_bytes()
        return content

    def metadata(self, key: str) -> dict[str, str]:
        return dict(self.server.client().bucket(self.bucket).get_blob(key).metadata or {})

    def keys(self) -> list[str]:
        return sorted(blob.name for blob in self.server.client().list_blobs(self.bucket))

    def delete(self, key: str) -> None:
        self.server.client().bucket(self.bucket).blob(key).delete()


class AzureCloud(Cloud):
    name = "azure"
    server: AzureServer

    def url(self, prefix: str = "") -> str:
        return f"wasbs://{self.bucket}@{self.server.account}.blob.core.windows.net/{prefix}"

    def write(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        with self.server.client() as client:
            client.get_blob_client(self.bucket, key).upload_blob(
                data, overwrite=True, metadata=dict(metadata or {})
            )

    def read(self, key: str) -> bytes:
        with self.server.client() as client:
            content: bytes = client.get_blob_client(self.bucket, key).download_blob().readall()
        return content

    def metadata(self, key: str) -> dict[str, str]:
        with self.server.client() as client:
            return dict(client.get_blob_client(self.bucket, key).get_blob_properties().metadata)

    def keys(self) -> list[str]:
        with self.server.client() as client:
            return sorted(client.get_container_client(self.bucket).list_blob_names())

    def delete(self, key: str) -> None:
        with self.server.client() as client:
            client.get_blob_client(self.bucket, key).delete_blob()
