"""Requests to one container of a storage account, and what their answers say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from sidecar.errors import SecretInvalid
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.azure.properties import repeated, scope_of
from sidecar.mounter.store.azure.requests import (
    AzureRequests,
    block_list,
    condition_headers,
    encoded,
    to_azure,
)
from sidecar.mounter.store.azure.sdk import AzureIdentity, AzureSdk
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.values import http_time_s, parse_version
from sidecar.mounter.store.http_store import HttpStore
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    ObjectInfo,
    Properties,
    StoreObserver,
)
from sidecar.mounter.store.login import CredentialSource, Login
from sidecar.mounter.store.request_builder import BAD_ANSWER
from sidecar.mounter.store.store_errors import Call, StoreErrors

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

T = TypeVar("T")


class AzureClient(HttpStore[AzureCredentials]):
    """What :class:`.store.AzureStore` and its uploads need of the container."""

    def __init__(
        self,
        source: StoreSource,
        credentials: CredentialSource,
        *,
        retry_budget_s: float,
        observer: StoreObserver,
        with_metadata: bool = False,
    ) -> None:
        login = Login(credentials, AzureCredentials)
        self._base = login.credentials.blob_endpoint or _default_endpoint(source, login)
        try:
            endpoint = Endpoint.parse(self._base)
        except ValueError as error:
            raise SecretInvalid(f"the blob endpoint of {source.url}: {error}") from None
        errors = StoreErrors("Azure", source.bucket, str(endpoint))
        identity = AzureIdentity()
        self._sdk = AzureSdk(login, self._base, errors)
        self._azure = requests = AzureRequests(
            source,
            endpoint,
            login,
            lambda: identity.token(errors, login.epoch),
            with_metadata=with_metadata,
        )
        super().__init__(
            source,
            errors=errors,
            login=login,
            endpoint=endpoint,
            requests=requests,
            retry_budget_s=retry_budget_s,
            observer=observer,
        )

    def close(self) -> None:
        """As :meth:`Store.close`."""
        super().close()
        self._sdk.close()

    def _head(self, key: str) -> ObjectInfo:
        return self._head_as(Call("head", key), functools.partial(self._azure.parse_head, key))

    def _head_as(self, call: Call, parse: Callable[[Headers], T]) -> T:
        return self.read_head(call, lambda: self._azure.request("HEAD", call.key), parse)

    def put_block(self, key: str, name: str, content: Content, properties: Properties) -> None:
        """Stage a block of a blob that will have ``properties``.

        ``name``: all names of a blob's blocks must have one length.
        """
        query = {"comp": "block", "blockid": encoded(name)}
        self.property_keeper.write(
            scope_of(properties),
            lambda headers: self.transfer(
                Call("part", key),
                lambda: self._azure.request("PUT", key, query, headers, len(content)),
                (content,),
            ),
        )

    def commit_blocks(
        self,
        key: str,
        names: Sequence[str],
        size_bytes: int,
        metadata: Mapping[str, str],
        condition: Condition | None,
        *,
        properties: Properties,
        tags: str,
    ) -> ObjectInfo:
        """Make the blob of staged blocks and of blocks that it has already."""
        body = block_list(names)
        own = {
            "content-type": "application/xml",
            **to_azure(metadata),
            **condition_headers(condition),
        }
        reply = self.property_keeper.write(
            repeated(properties, tags),
            lambda headers: self.transfer(
                Call("complete", key, condition),
                lambda: self._azure.request(
                    "PUT", key, {"comp": "blocklist"}, {**headers, **own}, len(body)
                ),
                (body,),
            ),
        )
        return self._written(key, size_bytes, reply.headers, metadata, properties)

    def _written(
        self,
        key: str,
        size_bytes: int,
        made: Mapping[str, str],
        metadata: Mapping[str, str] | None,
        properties: Properties | None,
    ) -> ObjectInfo:
        """The written object, by headers. Raises StoreProtocolError if they do not describe it."""
        try:
            made_s = http_time_s(made["last-modified"])
            version = parse_version(made["etag"].strip('"'))
        except BAD_ANSWER:
            pass
        else:
            return ObjectInfo(key, size_bytes, made_s, version, dict(metadata or {}), properties)
        raise self.malformed("put", f"its answer about `{key}` lacks fields")


def _default_endpoint(source: StoreSource, login: Login[AzureCredentials]) -> str:
    account = login.credentials.account_name or source.account
    return f"https://{account}.{source.endpoint_suffix or 'blob.core.windows.net'}"
