"""How much time a deleted pod has, by the pod as the API has it. Pure."""

from __future__ import annotations

from typing import Any, Final

from sidecar.contract.pod import CONTAINER_NAME, RESERVED_PREFIX, SHARED_SUFFIX

Document = dict[str, Any]

_LOOK_S: Final = 2.0
_MOUNTS: Final = f"{RESERVED_PREFIX}{SHARED_SUFFIX}"


class PodDeletion:
    """The deletion of one pod, as far as it is known.

    Args:
        added_s: how much longer the pod's grace period is because of the sidecar.
    """

    def __init__(self, added_s: int) -> None:
        self._added_s = added_s
        self._told: Document | None = None
        self._next_s = 0.0

    def is_due(self, now_s: float) -> bool:
        """Whether to look at a pod that ends: somebody may shorten its time until the end."""
        return now_s >= self._next_s

    def look_at_pod(self, pod: Document | None, now_s: float) -> Document | None:
        """What is new for process 1 in the pod as the API has it; None if nothing is.

        The experiment keeps the time that it had without the sidecar. If somebody gives the pod
        more time than its spec does, the experiment gets it.
        """
        self._next_s = now_s + _LOOK_S
        grace_s = pod["metadata"].get("deletionGracePeriodSeconds") if pod else None
        if pod is None or grace_s is None:
            return None
        most_s = max(grace_s, pod["spec"].get("terminationGracePeriodSeconds") or 0)
        found = {
            "event": "deleted",
            "grace_s": grace_s,
            "own_grace_s": max(0, most_s - self._added_s),
            "containers": experiment_containers(pod["spec"]),
        }
        is_new, self._told = found != self._told, found
        return found if is_new else None


def experiment_containers(spec: Document) -> list[str]:
    """Names of the containers that have the mounts: not a mesh's, which end in their own way."""
    return [
        container["name"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]
        if container["name"] != CONTAINER_NAME
        and any(mount["name"] == _MOUNTS for mount in container.get("volumeMounts", []))
    ]
