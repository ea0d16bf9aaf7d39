"""Checks before the mount that a bucket answers, and that it can be written if it must be."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sidecar.backoff import Backoff
from sidecar.contract.spec import PersistenceSpec, Volume
from sidecar.errors import TlsUntrusted, Unavailable
from sidecar.mounter.store.interface import ObjectInfo, Store
from sidecar.mounter.worker.write_check import check_writes

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 2.0


def check_bucket(
    store: Store,
    write_key: str | None,
    deadline_s: float,
    on_outage: Callable[[Unavailable], object],
) -> ObjectInfo | None:
    """Wait until the bucket answers; the object that was written and deleted again, if any.

    Args:
        write_key: the key to write; None if writing is not to be checked.
        deadline_s: until when outages are retried (monotonic).
        on_outage: called with each outage before the wait, in which the supervisor's deadline may
            come.

    Raises:
        SidecarError: an error that waiting does not mend, such as a wrong key, a missing bucket, or
            an untrusted certificate; at the deadline, the last outage.
    """
    backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
    while True:
        try:
            store.probe()
            return check_writes(store, write_key) if write_key is not None else None
        except TlsUntrusted:
            raise
        except Unavailable as error:
            delay_s = backoff.next_s()
            if time.monotonic() + delay_s >= deadline_s:
                raise
            on_outage(error)
            time.sleep(delay_s)


def writable_directory(spec: PersistenceSpec, volume: Volume) -> str:
    """The prefix that the experiment writes to, such as ``user/…/1/``; empty: the whole bucket."""
    if volume.kind != "outputs" or spec.outputs_path is None:
        return ""
    below = spec.outputs_path.removeprefix(volume.path).strip("/")
    return f"{below}/" if below else ""
