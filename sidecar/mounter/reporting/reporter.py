"""The process that reports to the cluster: events and a condition of the pod.

It runs at low priority, and the supervisor waits for it only for a moment at the very end. Its
sources are the status document and the files of metrics.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from sidecar import logs
from sidecar.contract.pod import POD_VARIABLES, STOP_WITH_EXPERIMENT_VARIABLE, STOPPING_FILE
from sidecar.contract.spec import PersistenceSpec
from sidecar.errors import ClusterError
from sidecar.metrics import read_volume_totals
from sidecar.mounter.reporting.event_recorder import EventRecorder, PodReference
from sidecar.mounter.reporting.lost_mounts import LostMounts
from sidecar.mounter.reporting.pod_api import PodApi
from sidecar.mounter.reporting.pod_completion import wait_for_end
from sidecar.mounter.reporting.pod_deletion import PodDeletion
from sidecar.mounter.reporting.pod_reports import Observer, Report, condition
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.directories import pinned
from sidecar.mounter.system.status import METRICS_DIRECTORY, STATUS_FILE, read_status

log = logging.getLogger("sidecar.reporter")

_TURN_S: Final = 0.5
_TOTALS_S: Final = 5.0
_NICE: Final = 10


class Reporter:
    """Looks for what is new, and sends it.

    Args:
        state: the sidecar's state directory.
        spool_bytes: the budget of each bucket's spool, by the volume's label.
        added_s: how much longer the pod's grace period is because of the sidecar.
        tell: sends a message to the supervisor.
    """

    def __init__(
        self,
        state: Path,
        spool_bytes: Mapping[str, int],
        added_s: int,
        tell: Callable[[dict[str, Any]], object],
    ) -> None:
        self._state = state
        self._tell = tell
        self._deletion = PodDeletion(added_s)
        self._observer = Observer(spool_bytes)
        self._lost = LostMounts()
        pod = PodReference(*(os.environ[name] for name in POD_VARIABLES))
        self._recorder = EventRecorder(pod, PodApi())
        self._seen: tuple[int, int] | None = None
        self._next_totals_s = 0.0
        self._metrics: Path | None = None
        self.ready = False

    def turn(self, now_s: float, *, last: bool = False) -> None:
        """Look once, and send what is due. ``now_s``: monotonic; ``last``: send everything."""
        reports: list[Report] = []
        version = _version(self._state / STATUS_FILE)
        if version is not None and version != self._seen:
            self._seen = version
            status = read_status(self._state)
            reports += self._observer.look_at_status(status)
            self._lost.look_at_status(status)
            self.ready = bool(status["ready"])
            found = condition(status)
            if found is not None:
                self._recorder.set_condition(found)
        if now_s >= self._next_totals_s and self.ready:
            self._next_totals_s = now_s + _TOTALS_S
            if self._metrics is None:  # made before ready
                self._metrics = pinned(self._state / METRICS_DIRECTORY)
            reports += self._observer.look_at_totals(read_volume_totals(self._metrics))
        if self.ready and self._lost.is_due(now_s):
            reports += self._look_for_lost_mounts(now_s)
        if os.path.lexists(self._state / STOPPING_FILE) and self._deletion.is_due(now_s):
            self._look_for_deletion(now_s)
        for report in reports:
            self._recorder.add(report)
        self._recorder.send(now_s, last=last)

    def _look_for_lost_mounts(self, now_s: float) -> list[Report]:
        """Tell the supervisor, which publishes them; reports if the pod cannot be seen."""
        pod = self._recorder.see_pod()
        if not self._recorder.sees_pod:
            return self._lost.give_up()
        if self._lost.look_at_pod(pod, now_s):
            self._tell({"event": "lost", "containers": self._lost.containers})
        return []

    def _look_for_deletion(self, now_s: float) -> None:
        """Tell the supervisor how the pod was deleted, if that can be seen."""
        if self._recorder.sees_pod:
            message = self._deletion.look_at_pod(self._recorder.see_pod(), now_s)
            if message is not None:
                self._tell(message)


def _version(file: Path) -> tuple[int, int] | None:
    """A value that changes whenever the file is replaced; None if there is no file."""
    try:
        status = file.lstat()
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _watch_experiment(channel: Channel) -> None:
    """Tell the supervisor when the other containers have ended."""
    namespace, name = os.environ["SIDECAR_POD_NAMESPACE"], os.environ["SIDECAR_POD_NAME"]
    try:
        wait_for_end(PodApi(), namespace, name)
    except ClusterError as error:
        logs.event(log, "the pod will not complete by itself", logging.ERROR, why=error.line())
        return
    channel.send({"event": "experiment ended"})


def main(channel: Channel, spec: PersistenceSpec) -> int:
    """Ends when told to leave, or when process 1 is gone."""
    os.nice(_NICE)
    logs.set_up("reporter")
    if channel.receive() is None:  # its duty, which has no arguments
        return 0
    spools = {volume.label: volume.options.spool_bytes for volume in spec.buckets}
    added_s = int(spec.times.grace_s)
    reporter = Reporter(Path(spec.roots.state), spools, added_s, channel.send)
    watching = STOP_WITH_EXPERIMENT_VARIABLE not in os.environ
    while not select.select([channel], [], [], _TURN_S)[0]:
        reporter.turn(time.monotonic())
        if reporter.ready and not watching:
            watching = True
            target: Any = _watch_experiment
            threading.Thread(target=target, args=(channel,), daemon=True).start()
    reporter.turn(time.monotonic(), last=True)
    return 0
