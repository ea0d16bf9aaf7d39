"""Which containers have a bucket through a sub-path of a mount that is gone. Pure.

The kubelet binds a sub-path into a container when it starts the container. If the bucket is mounted
anew afterwards, by the next start of the sidecar's container or by healing on an older kernel, this
bind leads to the earlier mount until the container is started again.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from sidecar.contract.spec import volume_label
from sidecar.mounter.reporting.pod_reports import Report, mount_lost

Document = dict[str, Any]

_LOOK_S: Final = 2.0
_STATUSES: Final = ("initContainerStatuses", "containerStatuses")


def replaced(status: Document) -> list[Document]:
    """The volumes whose mount, by a status document, replaced one that was in use."""
    return [v for v in status["volumes"] if v["remounted_at"] is not None]


def lost_in(volumes: list[Document], pod: Document) -> dict[str, list[str]]:
    """Each volume that some container has lost: its label, and the containers' names.

    Args:
        volumes: from :func:`replaced`.
        pod: as the API has it.
    """
    found: dict[str, list[str]] = {}
    started = _started(pod)
    spec = pod["spec"]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        paths = {m["mountPath"] for m in container.get("volumeMounts", []) if m.get("subPath")}
        # The API's times are whole seconds.
        since = started.get(container["name"], float("inf"))
        for volume in volumes:
            if volume["path"] in paths and since <= int(volume["remounted_at"]):
                label = volume_label(volume["kind"], volume["name"])
                found.setdefault(label, []).append(container["name"])
    return found


class LostMounts:
    """The lost mounts of one pod, as far as they are known.

    Attributes:
        containers: by volume, from :func:`lost_in`.
    """

    def __init__(self) -> None:
        self.containers: dict[str, list[str]] = {}
        self._volumes: list[Document] = []
        self._is_known = True
        self._next_s = 0.0

    def look_at_status(self, status: Document) -> None:
        """Take a new status document."""
        volumes = replaced(status) if status["ready"] else self._volumes
        times = [volume["remounted_at"] for volume in volumes]
        if times != [volume["remounted_at"] for volume in self._volumes]:
            self._is_known = False
        self._volumes = volumes

    def is_due(self, now_s: float) -> bool:
        """Whether to look at the pod now: before the first answer, and while something is lost."""
        return (not self._is_known or bool(self.containers)) and now_s >= self._next_s

    def look_at_pod(self, pod: Document | None, now_s: float) -> bool:
        """Take the pod as the API has it (None: no answer); whether something is new."""
        self._next_s = now_s + _LOOK_S
        if pod is None:
            return False
        before = self.containers if self._is_known else None
        self.containers = lost_in(self._volumes, pod)
        self._is_known = True
        return self.containers != before

    def give_up(self) -> list[Report]:
        """What to report, once, because the pod cannot be seen."""
        self._is_known = True
        return [mount_lost(volume) for volume in self._volumes]


def _started(pod: Document) -> dict[str, float]:
    """When each container that runs was started (wall clock, s)."""
    status = pod.get("status", {})
    statuses = [s for key in _STATUSES for s in status.get(key) or []]
    running = {s["name"]: s.get("state", {}).get("running") for s in statuses}
    return {
        name: dt.datetime.fromisoformat(state["startedAt"]).timestamp()
        for name, state in running.items()
        if state
    }
