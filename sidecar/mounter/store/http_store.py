"""What the three stores share: root, reads, calls through an SDK, doubts about a 404."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sidecar.errors import (
    NameTooLong,
    NotFound,
    SidecarError,
    Stale,
    StoreProtocolError,
    Unavailable,
)
from sidecar.mounter.store.http.client import Body, HttpClient, Reply
from sidecar.mounter.store.http.forks import renew_in_child
from sidecar.mounter.store.http.pool import AdaptiveTimeout, Endpoint
from sidecar.mounter.store.http.requests import Listing, Put, RequestBuilder
from sidecar.mounter.store.http.retry import Retry, Retryable
from sidecar.mounter.store.interface import (
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
from sidecar.mounter.store.store_errors import Place, Request

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

QUICK_TIMEOUT_S = 10.0
"""For requests that move no content."""
TRANSFER_TIMEOUT_S = 120.0
"""For requests that move or copy content."""
WRITE_SILENCE_S = 20.0
"""A store that was sent a large part may write it to its disks before it answers."""
WRITTEN = frozenset({200, 201})
"""How stores answer a request that wrote something."""
MAX_KEY_LENGTH = 1024
"""Of a whole key: UTF-8 bytes on S3 and Google Cloud Storage, characters on Azure."""
BUCKET_CHECK_S = 10.0
"""How long a bucket that was seen is believed to be there."""

T = TypeVar("T")


class HttpStore(ABC, Generic[C]):
    """Common half of a :class:`~sidecar.mounter.store.interface.Store`.

    Args:
        source: the bucket and prefix.
        place: for messages.
        login: the credentials in use.
        endpoint, requests: for listings and bulk reads, which do without the SDK.
    """

    def __init__(
        self,
        source: StoreSource,
        *,
        place: Place,
        login: Login[C],
        endpoint: Endpoint,
        requests: RequestBuilder,
        retry_budget_s: float,
        observer: StoreObserver,
    ) -> None:
        self._source = source
        self._bucket = source.bucket
        self.place = place
        self._login = login
        self.retry = Retry(retry_budget_s, login, observer)
        self.property_keeper = PropertyKeeper(place)
        self._client = HttpClient(endpoint, requests, place)
        self._reader = RangeReader(self._client, requests, place, self.retry)
        self._pages = ListReader(self._client, requests, place)
        self._bucket_seen_s = 0.0
        self._quick = AdaptiveTimeout(steady_s=QUICK_TIMEOUT_S)
        self._writing = AdaptiveTimeout(steady_s=WRITE_SILENCE_S)
        self._copying = AdaptiveTimeout(steady_s=TRANSFER_TIMEOUT_S)
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Forget the SDK's sessions (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._sdk: Any = None
        self._sdk_of: tuple[int, int] | None = None
        self._sdk_lock = threading.Lock()

    @property
    def url(self) -> str:
        """The root as the admin wrote it."""
        return self._source.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def probe(self) -> None:
        """As :meth:`Store.probe`."""
        try:
            self.retry.once("list", lambda: self._pages.page(Listing("", None, "/", 1)))
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
        listing = Listing(prefix, token, delimiter, limit)
        page = self.retry.run("list", lambda: self._pages.page(listing))
        self._bucket_seen_s = time.monotonic()
        return page

    def head(self, key: str) -> ObjectInfo:
        """As :meth:`Store.head`."""
        try:
            return self._head(key)
        except NotFound:
            self._check_bucket()
            raise

    def get_range(self, key: str, version: str, offset: int, buffer: memoryview) -> int:
        """As :meth:`Store.get_range`."""
        try:
            return self._reader.get_range(key, version, offset, buffer)
        except NotFound:
            self._check_bucket()
            raise
        except Stale:
            # Some stores answer so for an object that is gone. If that cannot be found out, it
            # still is not the version that was asked for.
            with contextlib.suppress(Unavailable, StoreProtocolError):
                self.head(key)
            raise

    def settle(self, made: ObjectInfo) -> ObjectInfo:
        """As :meth:`Store.settle`, for a store that names a version once."""
        return made

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
        with self._sdk_lock:
            sdk, self._sdk = self._sdk, None
        if sdk is not None:
            self._disconnect(sdk)

    # --- for the subclasses ----------------------------------------------------------

    @abstractmethod
    def _connect(self) -> Any:
        """The fsspec file system with the current credentials; imports the SDK."""

    @abstractmethod
    def _disconnect(self, sdk: Any) -> None:
        """Close the sessions of what :meth:`_connect` made."""

    @abstractmethod
    def _sdk_errors(self) -> tuple[type[BaseException], ...]:
        """What the SDK raises. Anything else is a bug and passes through."""

    @abstractmethod
    def _translate(self, error: BaseException, request: Request) -> SidecarError | Retryable:
        """The one seam between the SDK's exceptions and the error tree."""

    @abstractmethod
    def _head(self, key: str) -> ObjectInfo:
        """The object, with retries."""

    def _call(
        self,
        request: Request,
        function: Callable[[Any], Awaitable[T]],
        timeout_s: float = QUICK_TIMEOUT_S,
    ) -> T:
        """Run a coroutine function of the file system until it works or the budget is spent."""
        return self.retry.run(
            request.operation, lambda: self._attempt(request, function, timeout_s)
        )

    def _attempt(
        self,
        request: Request,
        function: Callable[[Any], Awaitable[T]],
        timeout_s: float = QUICK_TIMEOUT_S,
    ) -> T:
        import fsspec.asyn

        sdk = self._current_sdk()
        try:
            result: T = fsspec.asyn.sync(sdk.loop, function, sdk, timeout=timeout_s)
        except self._sdk_errors() as error:
            translated = self._translate(error, request)
        else:
            return result
        # Outside the handler: the SDK's exceptions hold URLs and headers with signatures,
        # and must not stay behind this one.
        raise translated

    def transfer(
        self,
        request: Request,
        sign: Callable[[], Put],
        body: Body,
        accepted: Collection[int] = WRITTEN,
    ) -> Reply:
        """One request that writes, without the SDK, with retries."""
        return self.retry.run(
            request.operation, lambda: self.transfer_once(request, sign, body, accepted)
        )

    def transfer_once(
        self,
        request: Request,
        sign: Callable[[], Put],
        body: Body,
        accepted: Collection[int] = WRITTEN,
        timeout: AdaptiveTimeout | None = None,
    ) -> Reply:
        """One attempt at it. Raises as :meth:`HttpClient.get`.

        Args:
            timeout: for a request that the store may work on for longer than it takes to
                write a part.
        """
        return self._client.put(
            request, sign, body, accepted=accepted, timeout=timeout or self._writing
        )

    def check_key(self, key: str) -> None:
        """As :meth:`Store.check_key`."""
        length = self._key_length(self.full(key))
        if length > MAX_KEY_LENGTH:
            raise NameTooLong(
                f"`{key}` would be a key of {length} {self._key_unit}; {self.place} takes "
                f"{MAX_KEY_LENGTH}"
            )

    _key_unit = "bytes"

    def _key_length(self, full: str) -> int:
        return len(full.encode())

    def odd_answer(self, operation: str, what: str) -> StoreProtocolError:
        """An answer that makes no sense, though the request itself was a success."""
        error = self.place.protocol(what)
        self.retry.failed(operation, error)
        return error

    def properties_of(self, like: ObjectInfo | None) -> Properties:
        """What is made ``like`` an object must be given. Empty for one that is gone."""
        if like is None:
            return {}
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
        """Emulate a condition where the store itself cannot check it.

        Another writer may come between this and the write.
        """
        if condition is None:
            return
        request = Request("put", key, condition)
        try:
            found = self._head(key)
        except NotFound:
            if condition.version is not None:
                raise self.place.stale(key) from None
            return
        if condition.absent or not self._is_version(found, condition.version):
            raise self.place.condition_failed(request)

    def _is_version(self, found: ObjectInfo, version: str | None) -> bool:
        """Whether an object has a version; one that is not asked for, always."""
        return version in {None, found.version}

    def _check_bucket(self) -> None:
        """After a 404 that does not say what is missing: raises if it is the bucket."""
        if time.monotonic() - self._bucket_seen_s > BUCKET_CHECK_S:
            self.list_page("", limit=1)

    def _current_sdk(self) -> Any:
        wanted = (os.getpid(), self._login.epoch)
        with self._sdk_lock:
            if self._sdk is None or self._sdk_of != wanted:
                stale, self._sdk = self._sdk, self._connect()
                self._sdk_of = wanted
                if stale is not None:
                    self._disconnect(stale)
            return self._sdk
