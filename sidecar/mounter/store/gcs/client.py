"""Requests to one bucket of Google Cloud Storage, and what their answers say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from sidecar.errors import SecretInvalid
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.gcs.requests import GcsRequests, as_json, object_info
from sidecar.mounter.store.gcs.sdk import GcsSdk
from sidecar.mounter.store.gcs.tokens import Tokens
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse
from sidecar.mounter.store.http_store import WRITTEN, HttpStore
from sidecar.mounter.store.interface import ObjectInfo, StoreObserver
from sidecar.mounter.store.login import CredentialSource, Login
from sidecar.mounter.store.request_builder import BAD_ANSWER
from sidecar.mounter.store.store_errors import Call, StoreErrors

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

T = TypeVar("T")

GOOGLE_ENDPOINT = "https://storage.googleapis.com"

_ABORTED = frozenset({200, 204, 499})
_XML_ACCEPTED = frozenset({200, 204})


class GcsClient(HttpStore[GcsCredentials]):
    """What :class:`.store.GcsStore` and its uploads need of the bucket."""

    def __init__(
        self,
        source: StoreSource,
        credentials: CredentialSource,
        *,
        retry_budget_s: float,
        observer: StoreObserver,
        with_metadata: bool = False,
    ) -> None:
        login = Login(credentials, GcsCredentials)
        self._base = login.credentials.endpoint_url or GOOGLE_ENDPOINT
        try:
            endpoint = Endpoint.parse(self._base)
        except ValueError as error:
            raise SecretInvalid(f"STORAGE_EMULATOR_HOST: {error}") from None
        errors = StoreErrors("GCS", source.bucket, str(endpoint))
        self._tokens = Tokens(login, errors)
        self._sdk = GcsSdk(login, self._base, self._tokens.identity, errors)
        self._gcs = requests = GcsRequests(
            source, endpoint, self._tokens, with_metadata=with_metadata
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
        reply = self.transfer(
            Call("head", key), lambda: self._gcs.object("GET", key), timeout=self._quick
        )
        return self.info("head", reply)

    def info(self, operation: str, reply: BufferedResponse) -> ObjectInfo:
        """From a response that is an object resource. Raises StoreProtocolError if it is none."""
        return self._read(operation, reply, self._object_info)

    def _object_info(self, resource: Any) -> ObjectInfo:
        return object_info(resource, self._source.prefix)

    def _read(self, operation: str, reply: BufferedResponse, read: Callable[[Any], T]) -> T:
        """The result of ``read`` for a document. Raises StoreProtocolError for another document."""
        try:
            return read(reply.json())
        except BAD_ANSWER:
            pass  # the exception's message may quote the document
        raise self.malformed(operation, f"its answer to {operation} is not what was asked for")

    def abort(self, call: Call, location: str) -> None:
        """End a resumable upload. Raises NotFound if it is gone."""
        self.transfer(call, lambda: self._gcs.abort(location), (), _ABORTED, self._quick)

    def put_chunk(
        self, call: Call, location: str, content_range: str, body: Body
    ) -> BufferedResponse:
        """One attempt to send a piece of a resumable upload. Status 308: there is more to send."""
        return self.transfer_once(
            call,
            lambda: self._gcs.put_chunk(location, content_range),
            body,
            accepted={*WRITTEN, 308},
        )

    def request_xml(
        self,
        call: Call,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        *,
        body: Body = (),
        accepted: Collection[int] = _XML_ACCEPTED,
    ) -> BufferedResponse:
        """A request of the XML API about one object, with retries."""
        return self.transfer(
            call,
            lambda: self._gcs.xml(method, key, query, headers or {}),
            body,
            accepted,
        )

    def head_generation(self, key: str, generation: str) -> ObjectInfo:
        """One generation of an object. Raises NotFound."""
        reply = self.transfer(
            Call("head", key),
            lambda: self._gcs.object("GET", key, "", {"generation": generation}),
            timeout=self._quick,
        )
        return self.info("head", reply)

    def set_metadata(self, found: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        """Replace the metadata of this version, which keeps its generation."""
        # PATCH merges, so keys that are to go must be named.
        gone = dict.fromkeys(found.metadata or {})
        self.transfer(
            Call("copy", found.key),
            lambda: self._gcs.object(
                "PATCH", found.key, "", {"ifGenerationMatch": found.version}, has_json=True
            ),
            (as_json({"metadata": {**gone, **metadata}}),),
            timeout=self._quick,
        )
        return found._replace(metadata=dict(metadata))
