"""The one list of allowed differences from a local directory."""

from __future__ import annotations

from errno import EOPNOTSUPP
from typing import NamedTuple

OTHERWISE = 0
"""The call succeeds, and what comes out differs: an assertion of the test fails."""


class Difference(NamedTuple):
    """One difference.

    Attributes:
        how: the errno with which the test's system call is refused, or :data:`OTHERWISE`.
        paragraph: the heading of SEMANTICS.md that says so.
    """

    how: int
    paragraph: str


DIFFERENCES: dict[tuple[str, str], Difference] = {}
