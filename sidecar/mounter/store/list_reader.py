"""Reads pages of a listing. Knows no cloud and no SDK.

An SDK takes ten times what parsing a page takes, and the first page would wait for its import
(docs/decisions/0007-listing-the-short-way.md).
"""

from __future__ import annotations

from http import HTTPStatus

from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.mounter.store.interface import Page
from sidecar.mounter.store.request_builder import ListQuery, RequestBuilder
from sidecar.mounter.store.store_errors import Call, StoreErrors
from sidecar.units import MIB

MAX_PAGE_BYTES = 32 * MIB
"""More than a thousand of the longest keys, every byte of them escaped."""
PAGE_TIMEOUT_S = 10.0
"""A page takes a store longer than a range, and its time varies more."""

_CALL = Call("list")


class ListReader:
    """Reads pages.

    Args:
        client: sends the requests.
        requests: builds them.
        errors: makes the errors.
    """

    def __init__(
        self, client: HttpClient[Call], requests: RequestBuilder, errors: StoreErrors
    ) -> None:
        self._client = client
        self._requests = requests
        self._errors = errors
        self._timeout = AdaptiveTimeout(steady_s=PAGE_TIMEOUT_S)

    def page(self, query: ListQuery) -> Page:
        """One attempt at a page. Raises as :meth:`HttpClient.receive`."""
        body = self._client.receive(
            _CALL,
            lambda: self._requests.list(query),
            self._read,
            accepted={HTTPStatus.OK},
            timeout=self._timeout,
        )
        try:
            page = self._requests.page(body)
        except (ValueError, LookupError, TypeError, RecursionError):
            page = None  # its message may quote the body
        if page is None:
            raise self._errors.protocol("its answer to list is no page of a listing")
        if page.next_token is not None and page.next_token == query.token:
            raise self._errors.protocol("its listing does not go on")  # it would never end
        return page

    def _read(self, response: Response) -> bytes:
        body = response.read(MAX_PAGE_BYTES + 1)
        if len(body) > MAX_PAGE_BYTES:
            raise self._errors.protocol(f"a page is longer than {MAX_PAGE_BYTES} bytes")
        if response.length:  # bytes that did not come
            error = self._errors.protocol("a page of a listing came only in part")
            raise Retryable(error, "truncated")
        return body
