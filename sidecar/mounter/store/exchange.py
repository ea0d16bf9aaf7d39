"""One GET and its answer, over keep-alive connections and without an SDK.

One request, one connection. No thread is started, so that a forked child can use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TypeVar, cast

from sidecar.errors import StoreError
from sidecar.mounter.store.answers import Answer, Place, Request, parse_retry_after
from sidecar.mounter.store.connections import (
    TRANSPORT_ERRORS,
    ConnectionPool,
    Endpoint,
    Patience,
    Response,
)
from sidecar.mounter.store.dialect import Dialect, Get
from sidecar.mounter.store.retry import Again

_MAX_ERROR_BYTES = 64 * 1024

T = TypeVar("T")


class Exchange:
    """Sends GETs to one store.

    Args:
        endpoint: where the requests go.
        dialect: how they look.
        place: for messages.
    """

    def __init__(self, endpoint: Endpoint, dialect: Dialect, place: Place) -> None:
        self._pool = ConnectionPool(endpoint)
        self._dialect = dialect
        self._place = place

    def get(
        self,
        request: Request,
        sign: Callable[[], Get],
        read: Callable[[Response], T],
        *,
        accepted: Collection[int],
        patience: Patience,
    ) -> T:
        """One attempt: what ``read`` makes of an answer whose status is ``accepted``.

        Args:
            request: for messages.
            sign: makes the request; again where the store says that the bucket is elsewhere.
            read: reads the body; to its end, or the connection is not used again.

        Raises:
            StoreError: what the answer means, where asking again does not help.
            Again: what the answer means, or that there was none.
        """
        followed = False
        while True:
            signed = sign()
            pool = self._pool
            connection, reused = pool.take(patience.timeout_s)
            response: Response | None = None
            try:
                began_s = time.perf_counter()
                connection.request("GET", signed.target, headers=signed.headers)
                response = cast("Response", connection.getresponse())
                patience.answered(time.perf_counter() - began_s)
                if response.status in accepted:
                    return read(response)
                body = response.read(_MAX_ERROR_BYTES)
                moved = None if followed else self._dialect.moved(response.fields)
                if moved is None:
                    raise self._meaning(response, body, request)
                followed = True
                self._pool = ConnectionPool(moved)
                pool.close_idle()
            except TRANSPORT_ERRORS as error:
                if isinstance(error, TimeoutError):
                    patience.stalled()
                if not (reused and _was_closed_idle(error)):
                    raise self._place.from_transport(error) from None
                # A server may close an idle connection at any time; that is no outage.
                pool.close_idle()
            finally:
                usable = response is not None and response.isclosed() and not response.will_close
                if usable and pool is self._pool:
                    pool.give_back(connection)
                else:
                    pool.discard(connection)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close_idle()

    def _meaning(self, response: Response, body: bytes, request: Request) -> StoreError | Again:
        code = self._dialect.error_code(response.fields, body)
        retry_after_s = parse_retry_after(response.fields.get("retry-after"))
        return self._place.from_answer(Answer(response.status, code, retry_after_s), request)


def _was_closed_idle(error: Exception) -> bool:
    return isinstance(error, ConnectionResetError | BrokenPipeError)  # RemoteDisconnected too
