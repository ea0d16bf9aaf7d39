"""When the pod began to end, until when everything must be saved, and what is not saved yet.

A kubelet tells this container to stop only when the experiment has ended, or two seconds before the
pod's grace period is over. Its preStop hook runs at the beginning, and writes a file. The hook
cannot see that somebody shortened the grace period (``kubectl delete --grace-period=5``). The API
shows it, if the reporter may see the pod. If not, the end can come at any time, so the termination
message says from the beginning what is not saved yet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from sidecar import logs
from sidecar.contract.spec import PersistenceSpec
from sidecar.errors import NotSaved, printable
from sidecar.mounter.supervisor.volume import SupervisedBucket
from sidecar.mounter.system import status
from sidecar.mounter.system.channel import Message

log = logging.getLogger("sidecar.supervisor")

_LEAST_S: Final = 0.5
"""For small files, if the grace period is over already."""
_AFTER_HOOKS_S: Final = 2.0
"""How long a kubelet lets a container live whose preStop has taken all of its time."""


class PodEnd:
    """The end of one pod.

    Attributes:
        deadline_s: until when all must be saved (monotonic); None while the pod is not ending.
        is_over: no time is left to save more.
    """

    def __init__(self, spec: PersistenceSpec) -> None:
        self._spec = spec
        self._began_s: float | None = None  # monotonic
        self._deletion: Message | None = None
        self._message = ""
        self.deadline_s: float | None = None
        self.is_over = False

    def look(self, state: int) -> bool:
        """Check the hook's file for the pod's end; whether it is news that the time is over.

        Args:
            state: descriptor of the state directory.
        """
        found = None if self._began_s is not None else status.read_stopping(state)
        if found is not None:
            began_s, grace_s = found
            self._began_s = time.monotonic() - max(0.0, time.time() - began_s)
            self._end_after(grace_s if self._deletion is None else self._deletion["grace_s"])
        was_over = self.is_over
        self.is_over = self.deadline_s is not None and time.monotonic() >= self.deadline_s
        return self.is_over != was_over

    def on_deleted(self, deletion: Message) -> None:
        """Take the API's word that the pod was deleted, and with which grace period.

        Args:
            deletion: the message ``deleted``, which the reporter sends whenever there is news.
        """
        self._deletion = deletion
        if self._began_s is not None:
            self._end_after(deletion["grace_s"])

    def _end_after(self, grace_s: float) -> None:
        assert self._began_s is not None
        margin_s = min(self._spec.times.grace_margin_s, grace_s / 2)
        deadline_s = self._began_s + grace_s - margin_s
        if deadline_s != self.deadline_s:
            self.deadline_s = deadline_s
            left_s = deadline_s - time.monotonic()
            logs.event(log, "the pod is ending", seconds_left=f"{left_s:.0f}")

    def overdue(self) -> list[str]:
        """The experiment's containers whose own grace period is over, whether they run or not.

        Only if the API says that the pod was deleted: a kubelet also runs the hook when it starts
        the sidecar's container anew.
        """
        if self._began_s is None or self._deletion is None:
            return []
        end_s = self._began_s + self._deletion["own_grace_s"] + _AFTER_HOOKS_S
        return self._deletion["containers"] if time.monotonic() >= end_s else []

    def seconds_left(self) -> float:
        """The time for saving, from now. Without the hook, this container's own time begins now."""
        times = self._spec.times
        if self.deadline_s is None:
            return max(0.0, times.grace_s - times.grace_margin_s)
        return max(_LEAST_S, self.deadline_s - time.monotonic())

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
    """What the buckets' workers could not save, a line for each file; empty if all is saved."""
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
