"""The client of a cloud's SDK, made when it is needed, and bounds for SDKs that use aiohttp."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sidecar.mounter.store.http.forks import renew_in_child
from sidecar.mounter.store.login import Login

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse

T = TypeVar("T")


def within_bounds(seconds: float, most_bytes: int) -> ClientMiddlewareType:
    """For aiohttp: an answer must come within ``seconds``, whole and small.

    Redirects are not followed, since a login's headers would go with them.
    """
    import asyncio  # only a process that asks an SDK needs it

    async def guard(request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
        async with asyncio.timeout(seconds):
            response = await send(request)
            try:
                response._body = await _content(response, most_bytes)  # `read` returns it
            except BaseException:
                response.close()
                raise
            return response

    return guard


async def _content(response: ClientResponse, most_bytes: int) -> bytes:
    from aiohttp import ClientPayloadError

    if 300 <= response.status < 400 or "content-encoding" in response.headers:
        raise ClientPayloadError("a redirect, or packed")
    content = b""
    async for block in response.content.iter_any():
        content += block
        if len(content) > most_bytes:
            raise ClientPayloadError("too long")
    return content


class SdkClient(Generic[T]):
    """One client for each process and login. Safe to use from any thread.

    Args:
        login: the credentials in use; newer ones get a new client.
        connect: makes a client; imports the SDK.
        close: closes the connections of a client that is no longer used.
    """

    def __init__(
        self, login: Login[Any], connect: Callable[[], T], close: Callable[[T], object]
    ) -> None:
        self._login = login
        self._connect = connect
        self._close = close
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Forget the parent's client (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._client: T | None = None
        self._made_for: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def current(self) -> T:
        """The client for the present login. Raises what ``connect`` raises."""
        wanted = (os.getpid(), self._login.epoch)
        with self._lock:
            if self._client is None or self._made_for != wanted:
                outdated, self._client = self._client, self._connect()
                self._made_for = wanted
                if outdated is not None:
                    self._close(outdated)
            return self._client

    def close(self) -> None:
        """Close the client, if there is one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            self._close(client)
