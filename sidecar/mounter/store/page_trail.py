"""Notices a listing that goes in circles. Sends nothing, knows no cloud.

A token that comes a second time would be asked for ever, and a store may repeat three in turn. To
remember every token of a listing of a million pages is too much, and the store keeps nothing
between two pages. So what is needed travels in the token that the caller gives back: by Brent's
method ("An improved Monte Carlo factorization algorithm", BIT 20, 1980) each page is compared
with one earlier page, and that one is replaced after 1, 2, 4, ... pages. A circle is noticed at
the latest when three times as many pages have come as lead into it and are in it.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from sidecar.mounter.store.interface import Page

MOST_EMPTY_PAGES = 1000
"""In a row. Stores that stop at a limit of work give some; who gives no name in a thousand requests
will give none."""
MAX_TOKEN_CHARACTERS = 8192
"""It goes back in a URL."""
_SEPARATOR = ":"


class PageTrail(NamedTuple):
    """Where a listing is.

    Attributes:
        token: the store's, for the next page; None for the first.
        pages: since the earlier page that is compared with.
        most_pages: how many there may be until it is replaced.
        empty_pages: without a name, in a row.
        token_mark, names_mark: what that page's token and names are known by.
    """

    token: str | None = None
    pages: int = 0
    most_pages: int = 1
    empty_pages: int = 0
    token_mark: str = ""
    names_mark: str = ""

    @classmethod
    def parse(cls, token: str | None) -> PageTrail:
        """From what :meth:`after` gave the caller; None for the first page."""
        if token is None:
            return cls()
        pages, most_pages, empty_pages, token_mark, names_mark, own = token.split(_SEPARATOR, 5)
        return cls(own, int(pages), int(most_pages), int(empty_pages), token_mark, names_mark)

    def after(self, page: Page) -> str | None:
        """The token for what comes behind ``page``; None behind the last one.

        Raises:
            ValueError: the store does not come to an end.
        """
        token = page.next_token
        if token is None:
            return None
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise ValueError("a token that is too long")
        token_mark, names_mark = _mark(token), _mark(_names_of(page))
        if token == self.token or token_mark == self.token_mark:
            raise ValueError("a token that came before")
        if names_mark and names_mark == self.names_mark:
            raise ValueError("names that came before")
        empty_pages = 0 if page.objects or page.prefixes else self.empty_pages + 1
        if empty_pages > MOST_EMPTY_PAGES:
            raise ValueError("pages without names")
        pages, most_pages = self.pages + 1, self.most_pages
        if pages < most_pages:
            token_mark, names_mark = self.token_mark, self.names_mark
        else:
            pages, most_pages = 0, most_pages * 2
        fields = (pages, most_pages, empty_pages, token_mark, names_mark, token)
        return _SEPARATOR.join(map(str, fields))


def _names_of(page: Page) -> str:
    """What no other page of a listing has; empty if that cannot be said.

    Several servers repeat prefixes, so a single one is no proof.
    """
    if page.objects:
        return page.objects[-1].key
    if len(page.prefixes) > 1:
        return f"{page.prefixes[0]}\0{page.prefixes[-1]}"
    return ""


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest() if text else ""
