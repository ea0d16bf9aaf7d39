"""The credentials of one volume, of any store: read, and read again when rotated.

Each store has a ``credentials`` module for the format of its secrets.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

from sidecar.errors import SecretIncomplete
from sidecar.mounter.store.secrets import SecretFields

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource
    from sidecar.mounter.store.azure.credentials import AzureCredentials
    from sidecar.mounter.store.gcs.credentials import GcsCredentials
    from sidecar.mounter.store.s3.credentials import S3Credentials

Credentials: TypeAlias = "S3Credentials | GcsCredentials | AzureCredentials"


class VolumeCredentials:
    """The credentials of one volume, read again when the secret is rotated.

    A kubelet replaces the files of a secret by swapping a symbolic link, so one read
    sees one version. Safe to use from several threads.

    Args:
        source: as for :func:`load_credentials`.
        secrets_root: as for :func:`load_credentials`.
    """

    def __init__(self, source: StoreSource, secrets_root: str) -> None:
        self._source = source
        self._secrets_root = secrets_root
        self._lock = threading.Lock()
        self._loaded: Credentials | None = None

    def __repr__(self) -> str:
        return f"VolumeCredentials({self._source.url!r})"

    def current(self) -> Credentials:
        """The credentials that were read last. The first call reads.

        Raises:
            CredentialError: as from :func:`load_credentials`.
        """
        with self._lock:
            if self._loaded is None:
                self._loaded = load_credentials(self._source, self._secrets_root)
            return self._loaded

    def refresh(self) -> bool:
        """Read the credentials again; whether they changed.

        Raises:
            CredentialError: the secret cannot be read any more; the last credentials stay.
        """
        with self._lock:
            before = self._loaded
            self._loaded = load_credentials(self._source, self._secrets_root)
            return self._loaded != before


def load_credentials(source: StoreSource, secrets_root: str) -> Credentials:
    """Read a bucket's credentials. Only its store's module is imported.

    Args:
        source: the bucket. Without a secret it is the ambient identity, or none if it is
            ``anonymous``.
        secrets_root: directory with ``<secret>/<secretKey>`` files.

    Raises:
        SecretFileMissing: no such file, or it cannot be read.
        SecretNotJson: not a JSON object.
        SecretKeyMissing: a key is absent or empty.
        SecretInvalid: a value that no login can use.
        SecretIncomplete: the spec has ``secret`` or ``secret_key`` alone.
    """
    if source.secret is None and source.secret_key is None:
        fields = None
    elif source.secret is None or source.secret_key is None:
        raise SecretIncomplete(
            f"{source.url}: `secret` and `secret_key` come together",
            "give both, or neither for ambient identity",
        )
    else:
        fields = SecretFields.from_file(secrets_root, source.secret, source.secret_key)
    if source.store == "s3":
        from sidecar.mounter.store.s3.credentials import S3Credentials

        return S3Credentials.from_fields(fields, source)
    if source.store == "gcs":
        from sidecar.mounter.store.gcs.credentials import GcsCredentials

        return GcsCredentials.from_fields(fields, source)
    from sidecar.mounter.store.azure.credentials import AzureCredentials

    return AzureCredentials.from_fields(fields, source)
