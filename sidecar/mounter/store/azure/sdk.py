"""What adlfs and azure-identity do for Azure: properties, blocks, copies; the pod's identity.

The only module of this folder that imports an SDK. No exception of one leaves it: they hold
URLs, headers and connection strings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.errors import LoginRejected, SecretInvalid, SidecarError
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.azure.requests import error_code_of
from sidecar.mounter.store.http.pool import authorities_file
from sidecar.mounter.store.http.retry import Retryable, parse_retry_after
from sidecar.mounter.store.interface import Condition
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.sdk_client import SdkClient
from sidecar.mounter.store.store_errors import Call, ErrorResponse, StoreErrors

STORAGE_SCOPE = "https://storage.azure.com/.default"
_QUICK_TIMEOUT_S = 10.0
_COPY_TIMEOUT_S = 120.0


class AzureSdk:
    """Requests about blobs of one container, through adlfs. Safe to use from any thread.

    Every method but ``close`` is one attempt and raises SidecarError, Retryable. ``name`` is a
    blob's whole name.

    Args:
        base_url: the account's blob endpoint.
    """

    def __init__(self, login: Login[AzureCredentials], base_url: str, errors: StoreErrors) -> None:
        self._login = login
        self._base_url = base_url
        self._errors = errors
        self._client = SdkClient(login, self._connect, _close)

    def properties(self, call: Call, name: str) -> Any:
        """The SDK's ``BlobProperties``."""
        return self._send(call, name, "get_blob_properties")

    def tags(self, call: Call, name: str) -> dict[str, str]:
        """A blob's tags."""
        found: dict[str, str] = self._send(call, name, "get_blob_tags")
        return found

    def blocks(self, call: Call, name: str) -> list[tuple[str, int]]:
        """The committed blocks in order: name and bytes of each."""
        committed, _ = self._send(call, name, "get_block_list")
        return [(block.id, block.size) for block in committed]

    def commit_blocks(
        self,
        call: Call,
        name: str,
        blocks: Sequence[str],
        metadata: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> Mapping[str, Any]:
        """Make a blob of blocks, if ``call.condition`` holds; its ``etag``, ``last_modified``."""
        from azure.storage.blob import BlobBlock

        fields: Mapping[str, Any] = self._send(
            call,
            name,
            "commit_block_list",
            _COPY_TIMEOUT_S,
            block_list=[BlobBlock(block) for block in blocks],
            metadata=dict(metadata),
            headers=dict(headers),  # the SDK adds to it
            **_conditional(call.condition),
        )
        return fields

    def set_metadata(
        self, call: Call, name: str, metadata: Mapping[str, str], version: str
    ) -> Mapping[str, Any]:
        """Replace a version's metadata; the new ``etag`` and ``last_modified``."""
        fields: Mapping[str, Any] = self._send(
            call,
            name,
            "set_blob_metadata",
            metadata=dict(metadata),
            **_conditional(Condition(version=version)),
        )
        return fields

    def start_copy(
        self,
        call: Call,
        target: str,
        source_url: str,
        version: str,
        metadata: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> Mapping[str, Any]:
        """Copy a version; ``copy_status``, and ``etag`` and ``last_modified`` of the target.

        Args:
            metadata: the target's; None for the source's.
        """
        fields: Mapping[str, Any] = self._send(
            call,
            target,
            "start_copy_from_url",
            _COPY_TIMEOUT_S,
            source_url=source_url,
            metadata=None if metadata is None else dict(metadata),
            headers=dict(headers),
            **_conditional(Condition(version=version), "source_"),
        )
        return fields

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _send(
        self,
        call: Call,
        name: str,
        method: str,
        timeout_s: float = _QUICK_TIMEOUT_S,
        **arguments: Any,
    ) -> Any:
        """One method of a blob's client, without the SDK's retries."""
        import fsspec.asyn
        from azure.core.exceptions import AzureError

        sdk = self._client.current()

        async def send() -> Any:
            blob = sdk.service_client.get_blob_client(self._errors.bucket, name)
            return await getattr(blob, method)(
                retry_total=0, connection_verify=authorities_file(), **arguments
            )

        try:
            return fsspec.asyn.sync(sdk.loop, send, timeout=timeout_s)
        except (AzureError, OSError) as error:
            translated = self._translate(error, call)
        except (ValueError, LookupError, TypeError, AttributeError):
            # A header or a document that the SDK cannot read; the exception quotes it.
            translated = self._errors.protocol(f"its answer to {call.operation} cannot be read")
        raise translated

    def _connect(self) -> Any:
        from adlfs import AzureBlobFileSystem

        login = self._login.credentials
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if login.ambient:
            host = self._base_url.removeprefix("https://")
            return AzureBlobFileSystem(
                account_name=login.account_name, account_host=host, anon=False, **options
            )
        # A connection string is the only way to give adlfs any endpoint.
        fields = [f"BlobEndpoint={self._base_url}"]
        if login.account_key:
            fields += [f"AccountName={login.account_name}", f"AccountKey={login.account_key}"]
        elif login.sas_token:
            fields.append(f"SharedAccessSignature={login.sas_token}")
        try:
            return AzureBlobFileSystem(connection_string=";".join(fields), anon=True, **options)
        except ValueError:
            pass  # its message may hold the string
        raise SecretInvalid(f"{self._errors}: no connection string can be made of the secret")

    def _translate(self, error: BaseException, call: Call) -> SidecarError | Retryable:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

        if isinstance(error, HttpResponseError) and error.response is not None:
            headers: Mapping[str, str] = error.response.headers  # type: ignore[attr-defined]
            response = ErrorResponse(
                error.status_code or 0,
                error_code_of(headers.get("x-ms-error-code") or "", str(error.message)),
                parse_retry_after(headers.get("retry-after")),
            )
            return self._errors.from_response(response, call)
        if isinstance(error, ClientAuthenticationError):
            return no_identity(self._errors)
        return self._errors.from_transport(error)


class PodIdentity:
    """The login that azure-identity's chain finds: workload identity, a managed identity."""

    def __init__(self) -> None:
        self._chain: Any = None

    def token(self, errors: StoreErrors) -> str:
        """A bearer token; the SDK keeps it until it is about to expire. Raises LoginRejected."""
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential

        if self._chain is None:
            self._chain = DefaultAzureCredential()
        with contextlib.suppress(ClientAuthenticationError):  # its message quotes what it tried
            token: str = self._chain.get_token(STORAGE_SCOPE).token
            return token
        raise no_identity(errors)


def no_identity(errors: StoreErrors) -> LoginRejected:
    """There is nothing to log in with."""
    return LoginRejected(
        f"{errors}: the pod has no ambient identity that Azure accepts",
        "name a `secret`, or give the pod's service account workload identity",
    )


def _conditional(condition: Condition | None, prefix: str = "") -> dict[str, Any]:
    """A condition as arguments of the SDK's methods."""
    from azure.core import MatchConditions

    if condition is None:
        return {}
    if condition.absent:
        return {f"{prefix}match_condition": MatchConditions.IfMissing}
    if condition.version is None:
        return {}
    return {
        f"{prefix}etag": f'"{condition.version}"',
        f"{prefix}match_condition": MatchConditions.IfNotModified,
    }


def _close(sdk: Any) -> None:
    import fsspec.asyn

    fsspec.asyn.sync(sdk.loop, sdk.service_client.close)
