"""Asks the Kubernetes API whether the pod's other containers have ended for good.

Only for clusters without native sidecars, where the sidecar is an ordinary container, and the
pod of a Job would never complete.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from kubernetes import client
from kubernetes.watch import Watch

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.errors import ApiConflict, ApiGone, ApiUnavailable
from sidecar.kubernetes_api import TIMEOUT_S, request, translated
from sidecar.pod import CONTAINER_NAME

log = logging.getLogger("sidecar.reporter")

_WATCH_S: Final = 300
_LOOK_AGAIN_S: Final = 1.0
_FIRST_DELAY_S: Final = 2.0
_LONGEST_DELAY_S: Final = 30.0


def wait_for_end(api: Any, namespace: str, name: str) -> None:
    """Return when every container of the pod but the sidecar has ended and will not restart.

    A watch that is dropped, or whose place in the history is gone (410), begins anew with a
    list, so nothing is missed.

    Raises:
        ClusterError: the pod may not be watched, or the API refuses otherwise.
    """
    backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
    while True:
        try:
            if _watch(api, namespace, name):
                return
            backoff.reset()
            wait_s = _LOOK_AGAIN_S  # a server may end every watch at once
        except (ApiUnavailable, ApiConflict, ApiGone) as error:
            asked_s = error.retry_after_s if isinstance(error, ApiUnavailable) else 0.0
            logs.event(log, "watch begins anew", logging.WARNING, why=error.line())
            wait_s = max(backoff.next_s(), asked_s)
        time.sleep(wait_s)


def _watch(api: Any, namespace: str, name: str) -> bool:
    """List, then watch: True once the experiment has ended, False if the watch ends before."""
    core = client.CoreV1Api(api)
    only = f"metadata.name={name}"
    what = f"watch pods in `{namespace}`"
    pods = request(what, core.list_namespaced_pod, namespace, field_selector=only)
    if any(has_ended(pod) for pod in pods["items"]):
        return True
    with translated(what):
        # `object`: plain values, see request().
        stream = Watch("object").stream(  # type: ignore[no-untyped-call]
            core.list_namespaced_pod,
            namespace,
            field_selector=only,
            resource_version=pods["metadata"]["resourceVersion"],
            timeout_seconds=_WATCH_S,
            _request_timeout=(TIMEOUT_S[0], _WATCH_S + TIMEOUT_S[1]),
        )
        return any(has_ended(event["raw_object"]) for event in stream)


def has_ended(pod: dict[str, Any]) -> bool:
    """Whether the experiment's containers have ended, and its restartPolicy restarts none."""
    policy = pod["spec"].get("restartPolicy", "Always")
    others = [c["name"] for c in pod["spec"]["containers"] if c["name"] != CONTAINER_NAME]
    statuses = {
        status["name"]: (status.get("state") or {}).get("terminated")
        for status in (pod.get("status") or {}).get("containerStatuses") or []
    }
    ended = [statuses.get(name) for name in others]
    if policy == "Always" or not all(ended):
        return False
    return policy == "Never" or all(state["exitCode"] == 0 for state in ended if state)
