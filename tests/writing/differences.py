"""The one list of what a mount may answer differently from a local directory.

Each names the paragraph of SEMANTICS.md that says so. What becomes equal is taken off here,
and from then on the tests of this folder insist on it.
"""

from __future__ import annotations

from enum import Enum


class Allowed(Enum):
    """A difference; its value is the heading in SEMANTICS.md."""

    NO_SYMLINKS = "X1 Links are refused"
    DIRECTORIES_STAY = "C4 Directories are not renamed in one step"
    MODE_OF_DIRECTORIES = "A5 Directories have the volume's mode and owner"
    ATTRIBUTES_OF_ANOTHER_MOUNT = "A2 Another mount shows the volume's mode and owner"
    NAMELESS_STATUS = "T3 libfuse cannot stat a file that lost its name"


ON_EVERY_MOUNT = {
    Allowed.NO_SYMLINKS,
    Allowed.DIRECTORIES_STAY,
    Allowed.MODE_OF_DIRECTORIES,
    Allowed.ATTRIBUTES_OF_ANOTHER_MOUNT,
}

ON_LIBFUSE = {
    Allowed.NAMELESS_STATUS,
}


def allowed_on(transport: str) -> frozenset[Allowed]:
    """What may differ on a transport."""
    return frozenset(ON_EVERY_MOUNT | (ON_LIBFUSE if transport == "libfuse" else set()))
