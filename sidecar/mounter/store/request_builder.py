"""The protocol of one store's requests, and of the meaning of its responses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import NamedTuple, Protocol, TypeVar

from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.retry import parse_retry_after
from sidecar.mounter.store.http.signed_request import SignedRequest
from sidecar.mounter.store.http.values import http_time_s
from sidecar.mounter.store.interface import ObjectInfo, Page
from sidecar.mounter.store.signing import clock
from sidecar.mounter.store.store_errors import CLOCK_CODES, Call, ErrorResponse, StoreErrors

T = TypeVar("T")

BAD_VALUE = (ValueError, TypeError, AttributeError)
"""Exceptions from reading a field that is not what it should be."""
BAD_ANSWER = (*BAD_VALUE, LookupError)
"""Exceptions from reading a document that is not what was asked for."""


def parse_entries(
    items: Sequence[T],
    parse: Callable[[Sequence[T]], Sequence[ObjectInfo]],
    hide: Callable[[T], None],
) -> Sequence[ObjectInfo]:
    """The entries of a page, without those that make no sense.

    All are parsed at once, which takes a third less time than one by one. They are parsed one by
    one only if something is wrong.

    Args:
        parse: the objects of some entries; raises one of ``BAD_VALUE`` for any of them.
        hide: called with each entry that is left out.

    Raises:
        LookupError: an entry lacks a field. A server that does not give it is of another kind, and
            a directory that looks empty because of that would be worse than an error.
    """
    try:
        return parse(items)
    except BAD_VALUE:
        pass
    found: list[ObjectInfo] = []
    for item in items:
        try:
            found += parse([item])
        except BAD_VALUE:
            hide(item)
    return found


class ListQuery(NamedTuple):
    """A wanted page, as in :meth:`sidecar.mounter.store.interface.Store.list_page`."""

    prefix: str
    token: str | None
    delimiter: str
    limit: int


class RequestBuilder(Protocol):
    """Requests of one store, and its responses as values. Every method is cheap.

    Methods that sign raise what a login raises: SidecarError, Retryable.
    """

    def get(self, key: str, version: str | None, byte_range: str) -> SignedRequest:
        """A GET of ``byte_range`` (``bytes=a-b``), on condition of ``version`` unless None."""

    def list(self, query: ListQuery) -> SignedRequest:
        """A GET of a page."""

    def page(self, body: bytes, query: ListQuery, hide: Callable[[str], None]) -> Page:
        """A page from its body.

        Args:
            query: what was asked for. Keys that do not begin with its prefix are left out.
            hide: called with the key, if there is one, of each entry that makes no sense.

        Raises one of ``BAD_ANSWER``, which may quote it, if the body is no such page.
        """

    def version(self, fields: Headers) -> str:
        """The version that a response names, or an empty string."""

    def parse_error(self, status: int, fields: Headers, body: bytes) -> ErrorResponse:
        """An error response; ``Retry-After`` is filled in by the caller."""

    def redirect(self, fields: Headers) -> Endpoint | None:
        """The endpoint to which an error response sends the client. Later requests go there."""


class StoreTranslator:
    """Implements :class:`sidecar.mounter.store.http.client.Translator` for one store."""

    def __init__(self, requests: RequestBuilder, errors: StoreErrors) -> None:
        self._requests = requests
        self._errors = errors
        self.redirect = requests.redirect

    def refused(self, call: Call, response: Response, body: bytes) -> Exception:
        """As the protocol."""
        error = self._requests.parse_error(response.status, response.fields, body)
        if response.status == HTTPStatus.FORBIDDEN and error.code in CLOCK_CODES:
            with contextlib.suppress(ValueError):  # the next attempt fails by itself
                clock.follow(http_time_s(response.fields.get("date", "")))
        retry_after_s = parse_retry_after(response.fields.get("retry-after"))
        return self._errors.from_response(replace(error, retry_after_s=retry_after_s), call)

    def unanswered(self, call: Call, error: Exception) -> Exception:  # noqa: ARG002 - the protocol's
        """As the protocol."""
        return self._errors.from_transport(error)
