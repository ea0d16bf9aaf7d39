"""Reports on their way to the cluster: few, counted, tried again, and given up where forbidden."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kubernetes import client

from sidecar import logs
from sidecar.errors import (
    ApiConflict,
    ApiForbidden,
    ApiGone,
    ApiNotFound,
    ApiRefused,
    ApiUnavailable,
    ClusterError,
)
from sidecar.kubernetes_api import request
from sidecar.mounter.reporting.pod_reports import CONDITION, Condition, Report
from sidecar.pod import CONTAINER_NAME

log = logging.getLogger("sidecar.reporter")

REPEAT_S: Final = 60.0
"""The same report again within this time only raises a count, which is sent afterwards."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_MOST_WAITING: Final = 100
_MESSAGE_BYTES: Final = 1024
"""What the API takes of an event's message."""
_CONDITION_INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Which pod this is."""

    name: str
    namespace: str
    uid: str
    node: str


@dataclass(slots=True)
class _Waiting:
    count: int = 0
    sent: int = 0
    name: str = ""
    first: str = ""
    not_before_s: float = 0.0


class EventRecorder:
    """Events and the condition of one pod.

    Args:
        connect: opens the API; called at the first use, since the client is large.
    """

    def __init__(self, pod: PodIdentity, connect: Callable[[], Any]) -> None:
        self._pod = pod
        self._connect = connect
        self._api: Any = None
        self._waiting: dict[Report, _Waiting] = {}
        self._condition: Condition | None = None
        self._condition_told: Condition | None = None
        self._condition_not_before_s = 0.0
        self._forbidden: set[str] = set()
        self._not_before_s = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def add(self, report: Report) -> None:
        """One more report; equal ones are counted."""
        if report in self._waiting or len(self._waiting) < _MOST_WAITING:
            self._waiting.setdefault(report, _Waiting()).count += 1

    def set_condition(self, condition: Condition) -> None:
        """The newest state; the ones before it that were not sent are nobody's concern."""
        self._condition = condition

    def send(self, now_s: float, *, last: bool = False) -> None:
        """Send what is due; takes at most one time-out of the API. Never raises.

        Args:
            now_s: monotonic.
            last: there is no later: intervals are not waited for.
        """
        if now_s < self._not_before_s and not last:
            return
        try:
            self._send_condition(now_s, last=last)
            for report, waiting in self._waiting.items():
                due = last or now_s >= waiting.not_before_s
                if due and waiting.count > waiting.sent and "events" not in self._forbidden:
                    self._send_event(report, waiting)
                    waiting.not_before_s = now_s + REPEAT_S
        except (ApiUnavailable, ApiConflict) as error:
            self._pause(error, now_s)
        except ClusterError as error:  # NotInCluster
            self._forbidden |= {"events", "condition"}
            logs.event(log, "nothing can be reported", logging.WARNING, why=error.line())
        else:
            self._pause_s = _FIRST_PAUSE_S

    def _pause(self, error: ClusterError, now_s: float) -> None:
        asked_s = error.retry_after_s if isinstance(error, ApiUnavailable) else 0.0
        if self._pause_s == _FIRST_PAUSE_S:
            logs.event(log, "reports wait", logging.WARNING, why=error.line())
        self._not_before_s = now_s + max(self._pause_s, asked_s)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    def _core(self) -> Any:
        if self._api is None:
            self._api = client.CoreV1Api(self._connect())
        return self._api

    def _send_condition(self, now_s: float, *, last: bool) -> None:
        wanted = self._condition
        if wanted is None or wanted == self._condition_told or "condition" in self._forbidden:
            return
        if now_s < self._condition_not_before_s and not last:
            return
        body = {
            "type": CONDITION,
            "status": wanted.status,
            "reason": wanted.reason,
            "message": wanted.message,
            "lastTransitionTime": _now(),
        }
        try:
            request(
                f"patch the status of pods in `{self._pod.namespace}`",
                self._core().patch_namespaced_pod_status,
                self._pod.name,
                self._pod.namespace,
                {"metadata": {"uid": self._pod.uid}, "status": {"conditions": [body]}},
            )
        except (ApiForbidden, ApiNotFound, ApiGone, ApiRefused) as error:
            self._give_up("condition", error)
        self._condition_told = wanted
        self._condition_not_before_s = now_s + _CONDITION_INTERVAL_S

    def _send_event(self, report: Report, waiting: _Waiting) -> None:
        count = waiting.count
        try:
            if waiting.name:
                try:
                    self._patch_event(waiting.name, count)
                except (ApiNotFound, ApiGone):  # events are kept for an hour
                    waiting.name = ""
            if not waiting.name:
                waiting.first = waiting.first or _now()
                name = f"{self._pod.name}.{secrets.token_hex(8)}"
                self._create_event(name, report, waiting.first, count)
                waiting.name = name
        except (ApiForbidden, ApiRefused) as error:
            self._give_up("events", error)
        waiting.sent = count

    def _create_event(self, name: str, report: Report, first: str, count: int) -> None:
        pod = self._pod
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": pod.uid,
            },
            "reason": report.reason,
            "message": _shortened(report.message),
            "type": report.kind,
            "source": {"component": CONTAINER_NAME, "host": pod.node},
            "reportingComponent": CONTAINER_NAME,
            "reportingInstance": pod.name,
            "firstTimestamp": first,
            "lastTimestamp": _now(),
            "count": count,
        }
        create = self._core().create_namespaced_event
        request(f"create events in `{pod.namespace}`", create, pod.namespace, body)

    def _patch_event(self, name: str, count: int) -> None:
        body = {"count": count, "lastTimestamp": _now()}
        namespace = self._pod.namespace
        patch = self._core().patch_namespaced_event
        request(f"patch events in `{namespace}`", patch, name, namespace, body)

    def _give_up(self, what: str, error: ClusterError) -> None:
        """Logged once; mounts work without it."""
        self._forbidden.add(what)
        logs.event(log, f"no {what} will be reported", logging.WARNING, why=error.line())


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shortened(message: str) -> str:
    data = message.encode()
    if len(data) <= _MESSAGE_BYTES:
        return message
    return data[: _MESSAGE_BYTES - 4].decode(errors="ignore") + " …"
