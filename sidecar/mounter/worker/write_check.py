"""Ready means written: writes, reads back and deletes one small object in a writable bucket.

A login that may list may still not write, and an experiment should not find that out at its
first checkpoint. :mod:`.bucket_check` says when this is tried.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets

from sidecar.errors import (
    AccessDenied,
    DeleteDenied,
    LoginRejected,
    SidecarError,
    StateUnusable,
    StoreProtocolError,
    WriteDenied,
)
from sidecar.mounter.filesystem.names.names import PROBE_PREFIX, is_probe_key
from sidecar.mounter.store.interface import ObjectInfo, Store
from sidecar.mounter.system.state_directory import StateDirectory

log = logging.getLogger("sidecar.worker")

LEFT_S = 3600.0
"""A probe of this age is a leftover: a start takes a minute (``ready_timeout_s``)."""
_PROBE_BYTES = 16
_NAME = "probe"
_TOKEN_BYTES = 16
_TOKEN = re.compile(r"[0-9a-f]{16}")


def probe_key(directory: str, state: StateDirectory) -> str:
    """The key of this sidecar's own probe.

    The next start with the same state directory uses it again, and so removes the probe of a
    start that was killed.

    Args:
        directory: the run's directory below the mount's root, ending in ``/``; or empty.

    Raises:
        StateUnusable: the token cannot be kept.
    """
    try:
        token = state.read(_NAME, _TOKEN_BYTES).decode("latin-1")
    except (FileNotFoundError, StateUnusable):
        token = ""
    except OSError as error:
        raise _unusable(state, error) from None
    if not _TOKEN.fullmatch(token):
        token = secrets.token_hex(_TOKEN_BYTES // 2)
        try:
            with state.replacing(_NAME) as descriptor:
                os.write(descriptor, token.encode())
        except OSError as error:
            raise _unusable(state, error) from None
    return f"{directory}{PROBE_PREFIX}{token}"


def _unusable(state: StateDirectory, error: OSError) -> StateUnusable:
    return StateUnusable(f"cannot write `{state.path / _NAME}`: {error.strerror}")


def check_writes(store: Store, key: str) -> ObjectInfo:
    """Write, read back and delete one small object; the object that was written.

    The write is unconditional, since not every store has conditional ones. Whether this one has
    is then tried with the object.

    Raises:
        WriteDenied, DeleteDenied: the login may list, but not do this.
        SidecarError: other errors of the store, such as QuotaExceeded.
    """
    content = os.urandom(_PROBE_BYTES)
    try:
        made = store.put(key, content)
    except LoginRejected:
        raise
    except AccessDenied as error:
        raise WriteDenied(
            f"{error.what}, and may be listed",
            "grant writing to the volume's credentials, or declare it `readOnly: true`",
        ) from None
    try:
        _read_back(store, made, content)
        store.try_conditions(key)
    except SidecarError:
        with contextlib.suppress(SidecarError):  # the first error is raised
            store.delete(key)
        raise
    try:
        store.delete(key)
    except LoginRejected:
        raise
    except AccessDenied as error:
        raise DeleteDenied(
            f"{error.what}, and may be written",
            "renaming and replacing files needs it: grant it to the volume's credentials, and "
            "keep no retention rule on what experiments write",
        ) from None
    return made


def _read_back(store: Store, made: ObjectInfo, content: bytes) -> None:
    buffer = bytearray(len(content))
    size = store.get_range(made.key, made.version, 0, memoryview(buffer))
    if bytes(buffer[:size]) != content:
        raise StoreProtocolError(
            f"`{made.key}` was written, and other bytes were read", "is there a proxy in between?"
        )


def remove_leftovers(store: Store, made: ObjectInfo) -> None:
    """Delete old probes beside ``made``, left by starts that were killed. Never raises."""
    prefix = made.key[: made.key.rindex(PROBE_PREFIX) + len(PROBE_PREFIX)]
    try:
        for info in store.list_page(prefix).objects:
            if is_probe_key(info.key) and info.mtime_s < made.mtime_s - LEFT_S:
                store.delete(info.key)
    except SidecarError as error:
        log.warning("what earlier starts left in the store stays there: %s", error.message)
