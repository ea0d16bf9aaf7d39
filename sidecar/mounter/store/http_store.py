"""The common part of the three stores: listing, reading, sending, and doubts about a 404."""

from __future__ import annotations

import contextlib
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from sidecar.errors import (
    AccessDenied,
    LoginRejected,
    NameTooLong,
    NotFound,
    SidecarError,
    Stale,
    StoreProtocolError,
    Unavailable,
)
from sidecar.mounter.store.content_types import content_type
from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.proxies import name_exempt_host
from sidecar.mounter.store.http.retry import Retry, Retryable
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse, SignedRequest
from sidecar.mounter.store.http.timeouts import LEAST_WAIT_S, AdaptiveTimeout
from sidecar.mounter.store.interface import (
    Arrived,
    Condition,
    ObjectInfo,
    Page,
    Properties,
    StoreObserver,
)
from sidecar.mounter.store.list_reader import ListReader
from sidecar.mounter.store.login import C, Login
from sidecar.mounter.store.object_properties import PropertyKeeper
from sidecar.mounter.store.range_reader import RangeReader
from sidecar.mounter.store.request_builder import (
    BAD_ANSWER,
    ListQuery,
    RequestBuilder,
    StoreTranslator,
)
from sidecar.mounter.store.store_errors import Call, StoreErrors

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

T = TypeVar("T")

QUICK_TIMEOUT_S = 10.0
"""For requests that move no content. This and the next two are the longest allowed silences."""
TRANSFER_TIMEOUT_S = 120.0
"""For requests that copy content, or make an object of parts."""
WRITE_SILENCE_S = 20.0
"""A store may write a large part to its disks before it answers."""
WRITTEN = frozenset({200, 201})
"""The statuses of a request that wrote something."""
MAX_KEY_LENGTH = 1024
"""For a whole key: UTF-8 bytes on S3 and Google Cloud Storage, characters on Azure."""
BUCKET_CHECK_S = 10.0
"""How long after a listing the bucket is not checked again."""


class HttpStore(ABC, Generic[C]):
    """Common half of a :class:`~sidecar.mounter.store.interface.Store`.

    Args:
        source: the bucket and prefix.
        errors: makes the errors.
        login: the credentials in use.
        endpoint: where the requests go.
        requests: builds them.
    """

    def __init__(
        self,
        source: StoreSource,
        *,
        errors: StoreErrors,
        login: Login[C],
        endpoint: Endpoint,
        requests: RequestBuilder,
        retry_budget_s: float,
        observer: StoreObserver,
    ) -> None:
        self._source = source
        self._bucket = source.bucket
        self.errors = errors
        self._login = login
        self.retry = Retry(retry_budget_s, login, observer)
        self.property_keeper = PropertyKeeper(errors)
        self._endpoint = endpoint
        name_exempt_host(endpoint.host)  # for the SDK
        self._client = HttpClient(endpoint, StoreTranslator(requests, errors))
        self._reader = RangeReader(self._client, requests, errors, self.retry)
        self._pages = ListReader(self._client, requests, errors, observer)
        self.conditions: set[str] = set()
        self._bucket_seen_s = 0.0
        self._quick = AdaptiveTimeout(LEAST_WAIT_S, QUICK_TIMEOUT_S)
        self._writing = AdaptiveTimeout(LEAST_WAIT_S, WRITE_SILENCE_S)
        self._slow = {
            "complete": AdaptiveTimeout(WRITE_SILENCE_S, TRANSFER_TIMEOUT_S),
            # A large copy takes long, even after many small ones that were quick.
            "copy": AdaptiveTimeout(TRANSFER_TIMEOUT_S, TRANSFER_TIMEOUT_S),
        }

    @property
    def url(self) -> str:
        """The root as the admin wrote it."""
        return self._source.url

    def origin(self) -> str:
        """As :meth:`Store.origin`."""
        source = self._source
        parts = (source.store, self._endpoint.way(), source.bucket, source.prefix)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def probe(self) -> None:
        """As :meth:`Store.probe`."""
        try:
            self.retry.once("list", lambda: self._pages.page(ListQuery("", None, "/", 1)))
        except Retryable as again:
            error = again.error
        else:
            return
        raise error

    def list_page(
        self,
        prefix: str,
        token: str | None = None,
        *,
        delimiter: str = "/",
        limit: int = 1000,
    ) -> Page:
        """As :meth:`Store.list_page`."""
        query = ListQuery(prefix, token, delimiter, limit)
        page = self.retry.run("list", lambda: self._pages.page(query, self.retry.hedging("list")))
        self._bucket_seen_s = time.monotonic()
        return page

    def head(self, key: str) -> ObjectInfo:
        """As :meth:`Store.head`."""
        try:
            return self._head(key)
        except NotFound:
            self._check_bucket()
            raise

    def get_range(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        """As :meth:`Store.get_range`."""
        if version is not None:
            version = self.version_to_read(key, version)
        try:
            return self._reader.get_range(key, version, offset, buffer, arrived)
        except NotFound:
            self._check_bucket()
            raise
        except Stale:
            # Some stores answer so if the object is gone. If that cannot be found out, the object
            # is still not the version that was asked for.
            with contextlib.suppress(Unavailable, StoreProtocolError):
                self.head(key)
            raise

    def version_to_read(self, key: str, version: str) -> str:
        """The name of a version in a GET."""
        del key
        return version

    def try_conditions(self, key: str) -> None:
        """As :meth:`Store.try_conditions`, for a store that checks all of them."""

    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        """As :meth:`Store.resolve_version`, for a store whose versions are final."""
        return made

    def source_of_copy(self, key: str, known: ObjectInfo | None) -> ObjectInfo:
        """The source of a copy, with metadata and properties. The copy requires its version.

        Raises NotFound; Stale if it is not ``known``, as far as the source was asked for.
        """
        if known is not None and known.is_complete:
            return known
        found = self.head(key)
        if known is not None and not self._is_version(found, known.version):
            raise self.errors.stale(key)
        return found

    def delete_many(self, keys: list[str]) -> None:
        """As :meth:`Store.delete_many`, for a store without bulk deletes."""
        for key in keys:
            self.delete(key)

    @abstractmethod
    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""

    def close(self) -> None:
        """As :meth:`Store.close`."""
        self._client.close()

    @abstractmethod
    def _head(self, key: str) -> ObjectInfo:
        """The object, with retries."""

    def read_head(
        self, call: Call, sign: Callable[[], SignedRequest], parse: Callable[[Headers], T]
    ) -> T:
        """The result of ``parse`` for a HEAD's response; it may raise ``BAD_ANSWER``."""

        def read(response: Response) -> T:
            with contextlib.suppress(*BAD_ANSWER):
                return parse(response.fields)
            raise self.errors.protocol(f"its answer to head of `{call.key}` lacks fields")

        def attempt() -> T:
            with self.refusal_explained():
                return self._client.receive(
                    call,
                    sign,
                    read,
                    accepted={200},
                    timeout=self._quick,
                    hedging=self.retry.hedging(call.operation),
                )

        return self.retry.run(call.operation, attempt)

    @contextlib.contextmanager
    def refusal_explained(self) -> Iterator[None]:
        """Wrap an attempt whose answer has no body, so that a refusal has no code.

        A listing then shows whether the store refuses the login itself.

        Raises:
            LoginRejected: it does.
        """
        try:
            yield
        except AccessDenied:
            try:
                self.probe()
            except LoginRejected:
                raise
            except SidecarError:
                pass  # the listing's error says nothing about the login
            raise

    def transfer(
        self,
        call: Call,
        sign: Callable[[], SignedRequest],
        body: Body = (),
        accepted: Collection[int] = WRITTEN,
        timeout: AdaptiveTimeout | None = None,
    ) -> BufferedResponse:
        """:meth:`transfer_once` with retries."""
        return self.retry.run(
            call.operation, lambda: self.transfer_once(call, sign, body, accepted, timeout)
        )

    def transfer_once(
        self,
        call: Call,
        sign: Callable[[], SignedRequest],
        body: Body = (),
        accepted: Collection[int] = WRITTEN,
        timeout: AdaptiveTimeout | None = None,
    ) -> BufferedResponse:
        """One attempt at a request whose response is short. Raises SidecarError, Retryable.

        Args:
            timeout: if another one than the usual one of the operation.
        """
        return self._client.send(
            call,
            sign,
            body,
            accepted=accepted,
            timeout=timeout or self._slow.get(call.operation, self._writing),
            hedging=None if body else self.retry.hedging(call.operation),
        )

    def check_key(self, key: str) -> None:
        """As :meth:`Store.check_key`."""
        length = self._key_length(self.full(key))
        if length > MAX_KEY_LENGTH:
            raise NameTooLong(
                f"`{key}` would be a key of {length} {self._key_unit}; {self.errors} takes "
                f"{MAX_KEY_LENGTH}"
            )

    _key_unit = "bytes"

    def _key_length(self, full: str) -> int:
        return len(full.encode())

    def malformed(self, operation: str, what: str) -> StoreProtocolError:
        """The error for a response with a success status that makes no sense."""
        error = self.errors.protocol(what)
        self.retry.failed(operation, error)
        return error

    type_property: str
    """The name of the Content-Type among properties."""

    def properties_of_new(self, key: str, like: ObjectInfo | None) -> Properties:
        """The properties of a new object: those of ``like``, or a type by its ending."""
        if like is not None:
            return self.properties_of(like)
        said = content_type(key)
        return {} if said is None else {self.type_property: said}

    def properties_of(self, like: ObjectInfo) -> Properties:
        """The properties that a new version gets from ``like``; empty if that version is gone."""
        if like.properties is not None:
            return like.properties
        try:
            return self.head(like.key).properties or {}
        except NotFound:
            return {}

    def full(self, key: str) -> str:
        """The key in the bucket."""
        return self._source.prefix + key

    def _relative(self, full: str) -> str:
        return full[len(self._source.prefix) :]

    def check_condition(self, key: str, condition: Condition | None) -> None:
        """Emulate a condition that the store itself cannot check.

        Another writer may come between this and the write.
        """
        if condition is None:
            return
        call = Call("put", key, condition)
        try:
            found = self._head(key)
        except NotFound:
            if condition.version is not None:
                raise self.errors.stale(key) from None
            return
        if condition.absent or not self._is_version(found, condition.version):
            raise self.errors.condition_failed(call)

    def _is_version(self, found: ObjectInfo, version: str | None) -> bool:
        """Whether an object is of a version; None stands for any."""
        return version in {None, found.version}

    def _check_bucket(self) -> None:
        """Raise if the bucket is gone. A 404 may not say what is missing."""
        if time.monotonic() - self._bucket_seen_s > BUCKET_CHECK_S:
            self.list_page("", limit=1)
