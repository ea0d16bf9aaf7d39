"""Pages of a listing without an SDK.

What an SDK takes for a page is ten times what it takes to parse it, and the first page has to
wait until the SDK is imported (docs/decisions/0007-listing-the-short-way.md).
"""

from __future__ import annotations

from http import HTTPStatus

from sidecar.errors import StoreProtocolError
from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.pool import AdaptiveTimeout
from sidecar.mounter.store.http.requests import Listing, RequestBuilder
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.interface import Page
from sidecar.mounter.store.store_errors import Place, Request
from sidecar.units import MIB

MAX_PAGE_BYTES = 32 * MIB
"""More than a thousand of the longest keys, every byte of them escaped."""
PAGE_TIMEOUT_S = 10.0
"""A store may look long for a page: longer than for a range, and each time differently long."""

_REQUEST = Request("list")


class ListReader:
    """Reads pages.

    Args:
        client: who sends the requests.
        requests: how they look.
        place: for messages.
    """

    def __init__(self, client: HttpClient, requests: RequestBuilder, place: Place) -> None:
        self._client = client
        self._requests = requests
        self._place = place
        self._timeout = AdaptiveTimeout(steady_s=PAGE_TIMEOUT_S)

    def page(self, listing: Listing) -> Page:
        """One attempt at a page. Raises as :meth:`HttpClient.get`."""
        body = self._client.get(
            _REQUEST,
            lambda: self._requests.list(listing),
            self._read,
            accepted={HTTPStatus.OK},
            timeout=self._timeout,
        )
        try:
            page = self._requests.page(body)
        except (ValueError, LookupError, TypeError, RecursionError):
            page = None  # its message may quote the body
        if page is None:
            raise self._place.protocol("its answer to list is no page of a listing")
        if page.next_token is not None and page.next_token == listing.token:
            raise self._place.protocol("its listing does not go on")  # it would never end
        return page

    def _read(self, response: Response) -> bytes:
        body = response.read(MAX_PAGE_BYTES + 1)
        if len(body) > MAX_PAGE_BYTES:
            raise self._place.protocol(f"a page is longer than {MAX_PAGE_BYTES} bytes")
        if response.length:  # what did not come
            raise Retryable(self._cut_short(), "truncated")
        return body

    def _cut_short(self) -> StoreProtocolError:
        return self._place.protocol("a page of a listing came only in part")
