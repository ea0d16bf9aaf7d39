"""Reads pages of a listing.

An SDK takes ten times as long as parsing a page, and the first page would wait for its import
(docs/decisions/0007-listing-the-short-way.md).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from http import HTTPStatus

from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.hedging import Hedging
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.timeouts import LEAST_WAIT_S, AdaptiveTimeout
from sidecar.mounter.store.interface import Page, StoreObserver
from sidecar.mounter.store.request_builder import BAD_ANSWER, ListQuery, RequestBuilder
from sidecar.mounter.store.store_errors import Call, StoreErrors
from sidecar.units import MIB

log = logging.getLogger(__name__)

MAX_PAGE_BYTES = 16 * MIB
"""Enough for a thousand of the longest keys and metadata."""
PAGE_TIMEOUT_S = 10.0
"""A page takes a store longer than a range, and its time varies more."""
MOST_EMPTY_PAGES = 1000
"""How many may come in a row. Stores that stop at a limit of work send some; a store that gives no
name in a thousand requests will give none."""
_MAX_TOKEN_CHARACTERS = 8192  # it goes back in a URL
_MOST_LOGGED = 1000
_SHOWN_CHARACTERS = 256
_SEPARATOR = ":"

_CALL = Call("list")


class ListReader:
    """Reads pages.

    Args:
        client: sends the requests.
        requests: builds them.
        errors: makes the errors.
        observer: counts the entries that are left out.
    """

    def __init__(
        self,
        client: HttpClient[Call],
        requests: RequestBuilder,
        errors: StoreErrors,
        observer: StoreObserver,
    ) -> None:
        self._client = client
        self._requests = requests
        self._errors = errors
        self._observer = observer
        self._timeout = AdaptiveTimeout(LEAST_WAIT_S, PAGE_TIMEOUT_S)
        self._logged: set[str] = set()

    def page(self, query: ListQuery, hedging: Hedging | None = None) -> Page:
        """One attempt at a page. Raises as :meth:`HttpClient.receive`.

        An entry that makes no sense (a negative size, no date) is left out, counted, and logged
        once: it must not hide the others. A page whose token leads to itself is asked for again.

        Args:
            query: its token must come from this method.
            hedging: as :meth:`HttpClient.receive`.
        """
        empty_pages, asked = 0, query
        if query.token is not None:
            count, own = query.token.split(_SEPARATOR, 1)
            empty_pages, asked = int(count), query._replace(token=own)
        page = self._client.receive(
            _CALL,
            lambda: self._requests.list(asked),
            lambda response: self._parse(response.read_all(MAX_PAGE_BYTES), asked),
            accepted={HTTPStatus.OK},
            timeout=self._timeout,
            hedging=hedging,
        )
        token = page.next_token
        if token is None:
            return page
        empty_pages = 0 if page.objects or page.prefixes else empty_pages + 1
        if (
            token == asked.token
            or len(token) > _MAX_TOKEN_CHARACTERS
            or empty_pages > MOST_EMPTY_PAGES
        ):
            raise Retryable(self._errors.protocol("its listing does not go on"), "server_error")
        return replace(page, next_token=f"{empty_pages}{_SEPARATOR}{token}")

    def _parse(self, body: bytes, asked: ListQuery) -> Page:
        left_out: list[str] = []
        try:
            page = self._requests.page(body, asked, left_out.append)
        except BAD_ANSWER:
            page = None  # the exception's message may quote the body
        if page is None:
            raise self._errors.protocol("its answer to list is no page of a listing")
        for key in left_out:
            self._hide(key)
        return page

    def _hide(self, key: str) -> None:
        self._observer.hidden("entry")
        shown = key[:_SHOWN_CHARACTERS]
        if shown not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add(shown)
            log.warning("key left out: %r (entry)", shown)
