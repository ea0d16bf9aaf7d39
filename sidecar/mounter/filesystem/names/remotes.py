"""A listing's statements about what the store has under a name, and their keys. Values only."""

from __future__ import annotations

from sidecar.mounter.filesystem.names.names import LINK_SUFFIX
from sidecar.mounter.store.interface import ObjectInfo


class RemoteDirectory:
    """A listing's statement about a directory: there are keys below it."""

    __slots__ = ()


class ForgottenObject:
    """The rest of a listed object when memory was short: it exists."""

    __slots__ = ("is_link",)

    def __init__(self, *, is_link: bool) -> None:
        self.is_link = is_link


REMOTE_DIRECTORY = RemoteDirectory()
FORGOTTEN_FILE = ForgottenObject(is_link=False)
FORGOTTEN_LINK = ForgottenObject(is_link=True)

Remote = ObjectInfo | RemoteDirectory
"""What the store has under a name: an object (a file's or a link's), or a directory.

``Remote | None`` is an answer about one name; None: nothing has this name.
"""
Listed = Remote | ForgottenObject
"""What a listing still knows about one of its names."""

_VACANT = "//"
"""The end of the relative key of a name that nothing has any more. No key of a store ends so."""


def to_relative_key(name: str, listed: Listed | None, skip: int) -> str:
    """The key below its directory that gives a name and says what has it.

    Args:
        listed: None if nothing has the name any more.
        skip: length of the directory's key.
    """
    if isinstance(listed, ObjectInfo):
        return listed.key[skip:]
    if listed is None:
        return name + _VACANT
    if isinstance(listed, ForgottenObject):
        return name + LINK_SUFFIX if listed.is_link else name
    return name + "/"


def from_relative_key(key: str) -> tuple[str, Listed | None]:
    """The reverse of :func:`to_relative_key`, with nothing known of an object."""
    if key.endswith("/"):
        if key.endswith(_VACANT):
            return key[:-2], None
        return key[:-1], REMOTE_DIRECTORY
    if key.endswith(LINK_SUFFIX):
        return key[: -len(LINK_SUFFIX)], FORGOTTEN_LINK
    return key, FORGOTTEN_FILE
