"""The list of allowed differences between a mount and a local directory.

Each names the paragraph of SEMANTICS.md that says so. What becomes equal is taken off here,
and from then on the tests of this folder insist on it.
"""

from __future__ import annotations

from enum import Enum


class Allowed(Enum):
    """A difference; its value is the heading in SEMANTICS.md."""

    NAMELESS_STATUS = "T3 libfuse cannot stat a file that lost its name"


ON_EVERY_MOUNT: frozenset[Allowed] = frozenset()

ON_LIBFUSE = frozenset({Allowed.NAMELESS_STATUS})


def allowed_on(transport: str) -> frozenset[Allowed]:
    """The differences that are allowed on a transport."""
    return ON_EVERY_MOUNT | (ON_LIBFUSE if transport == "libfuse" else frozenset())
