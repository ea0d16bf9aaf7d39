"""When the pod began to end, until when everything must be saved, and what is not saved yet.

A kubelet tells this container to stop only when the experiment has ended, or when the pod's grace
period is over but for two seconds. Its preStop hook runs at the beginning, and writes a file.
A hook cannot know that somebody shortened the grace period (``kubectl delete --grace-period=5``).
So the termination message says from the beginning what is not saved yet, whenever the end comes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from sidecar import logs
from sidecar.errors import NotSaved, printable
from sidecar.mounter.supervisor.volume import SupervisedBucket
from sidecar.mounter.system import status
from sidecar.spec import PersistenceSpec

log = logging.getLogger("sidecar.supervisor")

_LEAST_S: Final = 0.5
"""For what is small, if the grace period is over."""


class LastMinute:
    """The end of one pod.

    Attributes:
        is_over: there is no time left to save more.
    """

    def __init__(self, spec: PersistenceSpec) -> None:
        self._spec = spec
        self._deadline_s: float | None = None
        self._message = ""
        self.is_over = False

    @property
    def has_begun(self) -> bool:
        """Whether the pod is ending."""
        return self._deadline_s is not None

    def look(self, state: int) -> bool:
        """Look whether it has begun, by the hook's file; whether it is news that it is over.

        Args:
            state: descriptor of the state directory.
        """
        found = None if self.has_begun else status.read_stopping(state)
        if found is not None:
            began_s, grace_s = found
            left_s = grace_s - max(0.0, time.time() - began_s) - self._spec.times.grace_margin_s
            self._deadline_s = time.monotonic() + left_s
            logs.event(log, "the pod is ending", seconds_left=f"{left_s:.0f}")
        was_over = self.is_over
        self.is_over = self._deadline_s is not None and time.monotonic() >= self._deadline_s
        return self.is_over != was_over

    def seconds_left(self) -> float:
        """For saving, from now on. Without the hook, this container's own time begins now."""
        times = self._spec.times
        if self._deadline_s is None:
            return max(0.0, times.grace_s - times.grace_margin_s)
        return max(_LEAST_S, self._deadline_s - time.monotonic())

    def tell_unsaved(self, buckets: Sequence[SupervisedBucket]) -> None:
        """Bring the termination message up to date, in case this process is killed."""
        lines = unsaved_lines(self._spec, buckets, "not saved yet")
        message = "".join(f"{line}\n" for line in lines)
        if message != self._message:
            self._message = message
            status.write_termination_message(self._spec.roots.termination_message, message)


def unsaved_lines(
    spec: PersistenceSpec, buckets: Sequence[SupervisedBucket], how: str = "not saved"
) -> list[str]:
    """What the buckets' workers could not save, a line for each file; none if there is nothing."""
    count = sum(bucket.unsaved_count for bucket in buckets)
    if not count:
        return []
    error = NotSaved(
        f"{count} file(s) are only in the spool `{spec.roots.state}`",
        "start the sidecar again with the same state directory to finish",
    )
    lines = [error.line()]
    for bucket in buckets:
        for file in bucket.unsaved:
            why = f"{file['code']}: {file['why']}" if file["code"] else "no time left"
            size = f"; {file['size_bytes']} bytes" if file["size_bytes"] else ""
            text = f"{how}: {bucket.volume.label}: {file['key']} ({why}{size})"
            lines.append(printable(text))
        if more := bucket.unsaved_count - len(bucket.unsaved):
            lines.append(f"{how}: {bucket.volume.label}: {more} more")
    return lines
