"""Keeps an object's properties when a new version replaces it.

A store forgets the properties of an object when it is written, so a write repeats them. A login
that may write an object may not be allowed to set its tags, key or grants. So these are sent in
groups, and a refused group is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from sidecar import logs
from sidecar.errors import AccessDenied, StoreError, StoreProtocolError, Unsupported
from sidecar.mounter.store.store_errors import StoreErrors

log = logging.getLogger(__name__)

DISTINCT = 4096
"""How many different properties are shared by the objects that have them. Most of a bucket's are
equal, and listings are long."""
_REFUSALS = (AccessDenied, Unsupported, StoreProtocolError)

T = TypeVar("T")


class Group(NamedTuple):
    """Headers that a store takes or refuses together.

    Attributes:
        headers: set the properties.
        instead: sent if those are refused.
    """

    headers: Mapping[str, str]
    instead: Mapping[str, str] | None = None


class Repeated(NamedTuple):
    """The properties of an object as headers of a request.

    Attributes:
        plain: headers that everybody who may write may send.
        groups: headers that may be refused, by the group's name in the log; the likeliest first.
    """

    plain: Mapping[str, str]
    groups: Mapping[str, Group]


class PropertyKeeper:
    """Writes with repeated properties, as far as this login may set them.

    Safe to use from any thread.
    """

    def __init__(self, errors: StoreErrors) -> None:
        self._errors = errors
        self._refused: set[str] = set()

    def may(self, name: str) -> bool:
        """Whether a group was never refused."""
        return name not in self._refused

    def give_up(self, name: str, why: StoreError) -> None:
        """Leave a group out from now on. Logged once."""
        if self.may(name):
            self._refused.add(name)
            logs.event(
                log,
                "what objects have cannot be kept when they are written",
                logging.WARNING,
                what=name,
                bucket=self._errors.bucket,
                error=why,
            )

    def write(self, repeated: Repeated, send: Callable[[Mapping[str, str]], T]) -> T:
        """The result of ``send``, called with as many of the headers as the store takes.

        Raises what ``send`` raises if leaving groups out does not help.
        """
        left_out = frozenset(name for name in repeated.groups if not self.may(name))
        try:
            return send(_headers(repeated, left_out))
        except _REFUSALS as error:
            refusal = error
        for names in _suspects([name for name in repeated.groups if name not in left_out]):
            try:
                made = send(_headers(repeated, left_out | names))
            except _REFUSALS:
                continue
            for name in sorted(names):
                self.give_up(name, refusal)
            return made
        raise refusal


def _headers(repeated: Repeated, left_out: frozenset[str]) -> Mapping[str, str]:
    said = dict(repeated.plain)
    for name, group in repeated.groups.items():
        said.update((group.instead or {}) if name in left_out else group.headers)
    return said


def _suspects(names: Sequence[str]) -> Iterator[frozenset[str]]:
    """The groups that may be why a request was refused: each alone, then all together."""
    for name in names:
        yield frozenset({name})
    if len(names) > 1:
        yield frozenset(names)
