"""Asks the Kubernetes API whether the pod's other containers have ended for good.

Only for clusters without native sidecars. There the sidecar is an ordinary container, and without
this the pod of a Job would never complete.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.contract.pod import CONTAINER_NAME
from sidecar.errors import ApiConflict, ApiGone, ApiUnavailable
from sidecar.mounter.reporting.pod_api import PodApi

log = logging.getLogger("sidecar.reporter")

_LOOK_AGAIN_S: Final = 1.0
_FIRST_DELAY_S: Final = 2.0
_LONGEST_DELAY_S: Final = 30.0


def wait_for_end(api: PodApi, namespace: str, name: str) -> None:
    """Return when every container of the pod but the sidecar has ended and will not restart.

    A watch that is dropped, or whose place in the history is gone (410), begins anew with a
    list, so nothing is missed.

    Raises:
        ClusterError: the pod may not be watched, or the API refuses otherwise.
    """
    backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
    while True:
        try:
            if api.wait_for_state(namespace, name, has_ended):
                return
            backoff.reset()
            wait_s = _LOOK_AGAIN_S  # some servers end every watch at once
        except (ApiUnavailable, ApiConflict, ApiGone) as error:
            asked_s = error.retry_after_s if isinstance(error, ApiUnavailable) else 0.0
            logs.event(log, "watch begins anew", logging.WARNING, why=error.line())
            wait_s = max(backoff.next_s(), asked_s)
        time.sleep(wait_s)


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
