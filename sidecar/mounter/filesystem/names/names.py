"""Valid names of a path, and what names say of keys (SEMANTICS.md, Names). Pure functions."""

from __future__ import annotations

from sidecar.errors import NameInvalid, NameTooLong, NotPermitted

NAME_MAX_BYTES = 255
LINK_SUFFIX = ".rclonelink"
"""The end of a symbolic link's key. The object's content is the target.

rclone's convention (``--links``, https://rclone.org/local/#symlinks-junction-points). It needs no
metadata, so a listing alone tells links from files on every store.
"""
TARGET_MAX_BYTES = 4095
"""PATH_MAX of linux/limits.h without the NUL. A longer target cannot be followed."""
PROBE_PREFIX = ".mount-sidecar-probe-"
"""The beginning of the names of probes, which a sidecar writes to find out whether it may (N9)."""


def is_probe_key(key: str) -> bool:
    """Whether the object of this key is a probe, which no directory shows."""
    return key.rpartition("/")[2].startswith(PROBE_PREFIX)


def is_link_key(key: str) -> bool:
    """Whether the object of this key is a symbolic link."""
    return key.endswith(LINK_SUFFIX)


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


def check_file_name(name: str) -> None:
    """Refuse a name that no new file may have. Raises NotPermitted."""
    if is_link_key(name):
        raise NotPermitted(
            f"`{name}`: objects whose names end so are symbolic links", "choose another name"
        )
    if is_probe_key(name):
        raise NotPermitted(
            f"`{name}`: objects whose names begin so are the sidecar's", "choose another name"
        )


def is_spellable(name: str) -> bool:
    """Whether a component of a key can be a name in a directory."""
    if name in ("", ".", "..") or "\0" in name or "/" in name:
        return False
    return len(name) <= NAME_MAX_BYTES // 4 or len(name.encode()) <= NAME_MAX_BYTES
