"""The login of Azure Blob Storage: an account's key, or a connection string.

The keys are the source document's, with upstream's synonyms. Rules: see :mod:`..secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sidecar.errors import SecretInvalid, SecretKeyMissing, SpecInvalid
from sidecar.mounter.store.secrets import SecretFields, is_base64, is_endpoint

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

_NAME = ("AZURE_ACCOUNT_NAME", "azure_account_name", "account_name")
_KEY = ("AZURE_ACCOUNT_KEY", "azure_account_key", "account_key")
_CONNECTION = ("AZURE_CONNECTION_STRING", "azure_connection_string", "connection_string")

# learn.microsoft.com "Configure Azure Storage connection strings". Case does not matter.
_SETTINGS = {
    name.lower(): name
    for name in (
        "AccountKey",
        "AccountName",
        "BlobEndpoint",
        "DefaultEndpointsProtocol",
        "EndpointSuffix",
        "SharedAccessSignature",
        "UseDevelopmentStorage",
        # The portal writes these, too; blobs do not need them.
        "BlobSecondaryEndpoint",
        "FileEndpoint",
        "FileSecondaryEndpoint",
        "QueueEndpoint",
        "QueueSecondaryEndpoint",
        "TableEndpoint",
        "TableSecondaryEndpoint",
    )
}

# The meaning of `UseDevelopmentStorage=true`: the emulator's published account and key.
_DEVELOPMENT_STORAGE = (
    "AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1"
)


@dataclass(frozen=True, slots=True)
class AzureCredentials:
    """How to log in to Azure Blob Storage.

    Attributes:
        account_name: the connection string's, else the secret's, else the bucket URL's.
        account_key: base64; None if ``sas_token`` or an identity is used instead.
        connection_string: as written; the other fields repeat its parts.
        sas_token: without a leading ``?``.
        blob_endpoint: the account's URL, such as ``https://account.blob.core.windows.net``.
        ambient: the SDK's default chain provides the login (workload identity, ...).
        anonymous: requests carry no authorisation.
    """

    account_name: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    connection_string: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    blob_endpoint: str | None = field(default=None, repr=False)
    ambient: bool = False
    anonymous: bool = False

    @classmethod
    def from_fields(cls, fields: SecretFields | None, source: StoreSource) -> AzureCredentials:
        """From a secret's fields, or without a secret.

        Raises:
            SecretKeyMissing: a key is absent or empty.
            SecretInvalid: a value that no login can use.
            SpecInvalid: neither the secret nor the bucket URL names an account.
        """
        if fields is None:
            return cls(
                account_name=source.account,
                blob_endpoint=_account_endpoint(source.account, source),
                ambient=not source.anonymous,
                anonymous=source.anonymous,
            )
        connection = fields.first(*_CONNECTION)
        if connection is not None:
            parsed = _connection_string(str(fields.text(connection)))
            if isinstance(parsed, str):
                raise SecretInvalid(f"{fields.where}: `{connection}` {parsed}")
            return parsed
        name = fields.first(*_NAME)
        if name is not None:
            fields.check(_is_host_label, name, "is not a storage account's name")
        key = fields.first(*_KEY)
        if key is None:
            raise SecretKeyMissing(
                f"{fields.where}: `{_KEY[0]}` is missing or empty",
                f"give it, or `{_CONNECTION[0]}`",
            )
        fields.check(is_base64, key, "is not base64")
        account = fields.text(*_NAME) or source.account
        return cls(
            account_name=account,
            account_key=fields.text(key),
            blob_endpoint=_account_endpoint(account, source),
        )


def _account_endpoint(account: str | None, source: StoreSource) -> str:
    if account is None:
        raise SpecInvalid(f"{source.url}: names no storage account")
    return f"https://{account}.{source.endpoint_suffix or 'blob.core.windows.net'}"


def _connection_string(text: str) -> AzureCredentials | str:
    """A connection string's credentials, or what is wrong with it, without quoting it."""
    settings = _connection_settings(text)
    if isinstance(settings, str):
        return settings
    if "UseDevelopmentStorage" in settings:
        if len(settings) > 1 or settings["UseDevelopmentStorage"].lower() != "true":
            return "has `UseDevelopmentStorage`, which only stands alone and as `true`"
        return _connection_string(_DEVELOPMENT_STORAGE)
    endpoint = settings.get("BlobEndpoint", "").rstrip("/") or _default_endpoint(settings)
    if endpoint is None:
        return "has neither `AccountName` nor `BlobEndpoint`"
    if not is_endpoint(endpoint):
        return "does not give a plain http:// or https:// endpoint"
    key = settings.get("AccountKey")
    signature = settings.get("SharedAccessSignature", "").removeprefix("?") or None
    if key is None and signature is None:
        return "has neither `AccountKey` nor `SharedAccessSignature`"
    if key is not None and not is_base64(key):
        return "has an `AccountKey` that is not base64"
    return AzureCredentials(
        account_name=settings.get("AccountName") or _account_of(endpoint),
        account_key=key,
        connection_string=text,
        sas_token=signature if key is None else None,
        blob_endpoint=endpoint,
    )


def _connection_settings(text: str) -> dict[str, str] | str:
    """The settings of a connection string, or what is wrong with it, without quoting it."""
    settings: dict[str, str] = {}
    for number, part in enumerate(text.split(";"), start=1):
        if not part.strip():
            continue  # the portal ends them with `;`
        name, _, value = part.partition("=")
        known = _SETTINGS.get(name.strip().lower())
        if known is None or not value.strip():
            return f"has as part {number} no `Setting=value` of Azure's"
        if known in settings:
            return f"has `{known}` twice"
        settings[known] = value.strip()
    return settings


def _default_endpoint(settings: Mapping[str, str]) -> str | None:
    account = settings.get("AccountName")
    if account is None:
        return None
    protocol = settings.get("DefaultEndpointsProtocol", "https")
    suffix = settings.get("EndpointSuffix", "core.windows.net")
    return f"{protocol}://{account}.blob.{suffix}"


def _account_of(endpoint: str) -> str:
    """The account that a blob endpoint is for: its first label, or its path on an emulator."""
    parts = urlsplit(endpoint)
    return parts.path.strip("/") or str(parts.hostname).partition(".")[0]


def _is_host_label(value: object) -> bool:
    return re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", str(value)) is not None
