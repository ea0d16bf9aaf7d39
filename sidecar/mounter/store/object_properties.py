"""What an object has besides content and metadata, and how what takes its place gets it.

Stores keep the properties of an object only as long as nobody writes it: whoever writes a new
version says them again, or they are gone. Not everyone who may write an object may also give it
tags, another key or grants, so these are said in groups, and what is refused is left out.
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
"""How many different properties of each store are kept once, and not with each object that has
them: most of a bucket's are alike, and listings are long."""
_REFUSALS = (AccessDenied, Unsupported, StoreProtocolError)

T = TypeVar("T")
Headers = Mapping[str, str]


class Group(NamedTuple):
    """Headers that a store takes or refuses together.

    Attributes:
        headers: what says the properties.
        instead: what is said where they are refused.
    """

    headers: Headers
    instead: Headers | None = None


class Repeated(NamedTuple):
    """The properties of an object in the headers of a request.

    Attributes:
        plain: what everybody may say who may write.
        groups: what may be refused, by its name in the log; what is most likely first.
    """

    plain: Headers
    groups: Mapping[str, Group]


NOTHING = Repeated({}, {})


class PropertyKeeper:
    """Writes that repeat properties, as far as the store lets this login.

    Safe to use from any thread.
    """

    def __init__(self, errors: StoreErrors) -> None:
        self._errors = errors
        self._refused: set[str] = set()

    def may(self, name: str) -> bool:
        """Whether a group was never refused."""
        return name not in self._refused

    def give_up(self, name: str, why: StoreError) -> None:
        """A group is refused: from now on it is left out. Said once."""
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

    def write(self, repeated: Repeated, send: Callable[[Headers], T]) -> T:
        """What ``send`` returns, with headers that say as much as the store takes.

        Raises what ``send`` raises, where leaving out does not help.
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


def _headers(repeated: Repeated, left_out: frozenset[str]) -> Headers:
    said = dict(repeated.plain)
    for name, group in repeated.groups.items():
        said.update((group.instead or {}) if name in left_out else group.headers)
    return said


def _suspects(names: Sequence[str]) -> Iterator[frozenset[str]]:
    """What may be the reason of a refusal: each alone, then all together."""
    for name in names:
        yield frozenset({name})
    if len(names) > 1:
        yield frozenset(names)
