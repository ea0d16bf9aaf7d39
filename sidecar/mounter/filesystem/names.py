"""Which names a path may have, and which keys a path can spell (SEMANTICS.md, Names).

A symbolic link is an object whose key has a suffix and whose content is the target: the
convention of rclone (``--links``, https://rclone.org/local/#symlinks-junction-points). It needs no
metadata, so that a listing alone tells links from files on every store.
"""

from __future__ import annotations

from sidecar.errors import NameInvalid, NameTooLong
from sidecar.mounter.store.interface import ObjectInfo

NAME_MAX_BYTES = 255
LINK_SUFFIX = ".rclonelink"
TARGET_MAX_BYTES = 4095
"""PATH_MAX of linux/limits.h without the NUL: no longer target can be followed."""


PROBE_PREFIX = ".mount-sidecar-probe-"
"""How the name of an object begins that a sidecar writes to see whether it may (N9)."""


def is_probe_key(key: str) -> bool:
    """Whether the object of this key is a sidecar's probe, which no directory shows."""
    return key.rpartition("/")[2].startswith(PROBE_PREFIX)


def is_link_key(key: str) -> bool:
    """Whether the object of this key is a symbolic link."""
    return key.endswith(LINK_SUFFIX)


def object_key(prefix: str, name: str, remote: ObjectInfo | None) -> str:
    """The key of a name's object below ``prefix``; a directory's (None) ends in ``/``."""
    if remote is None:
        return f"{prefix}{name}/"
    return f"{prefix}{name}{LINK_SUFFIX}" if is_link_key(remote.key) else f"{prefix}{name}"


def check_name(name: str) -> None:
    """Refuse a name that no key can hold.

    Raises:
        NameTooLong: over 255 bytes of UTF-8 (NAME_MAX of the kernel's own file systems).
        NameInvalid: not UTF-8; keys of all three stores are UTF-8.
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise NameInvalid("the name is not UTF-8", "object keys are UTF-8") from None
    if length > NAME_MAX_BYTES:
        raise NameTooLong(f"a name of {length} bytes is longer than {NAME_MAX_BYTES}")


def is_spellable(name: str) -> bool:
    """Whether a part of a key can be a name in a directory."""
    if name in ("", ".", "..") or "\0" in name or "/" in name:
        return False
    return len(name) <= NAME_MAX_BYTES // 4 or len(name.encode()) <= NAME_MAX_BYTES
