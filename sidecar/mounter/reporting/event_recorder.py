"""Sends reports to the Kubernetes API: few, counted, tried again, given up if forbidden.

:mod:`.pod_reports` decides what is worth a report.
"""

from __future__ import annotations

import datetime as dt
import logging
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.contract.pod import CONTAINER_NAME
from sidecar.errors import (
    ApiConflict,
    ApiForbidden,
    ApiGone,
    ApiNotFound,
    ApiRefused,
    ApiUnavailable,
    ClusterError,
)
from sidecar.mounter.reporting.pod_api import PodApi
from sidecar.mounter.reporting.pod_reports import CONDITION, PodCondition, Report

log = logging.getLogger("sidecar.reporter")

REPEAT_S: Final = 60.0
"""The same report within this time only raises a count, which is sent afterwards as another event:
a right to change events would also be one to change other pods'. The time doubles with each."""
LONGEST_REPEAT_S: Final = 16 * REPEAT_S
_FIRST_DELAY_S: Final = 1.0
_LONGEST_DELAY_S: Final = 60.0
_MOST_REPORTS: Final = 100
_MESSAGE_BYTES: Final = 1024
"""The API refuses longer messages of an event."""
_CONDITION_INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class PodReference:
    """The pod in which this runs."""

    name: str
    namespace: str
    uid: str
    node: str


@dataclass(slots=True)
class _Event:
    """The events of one report.

    Attributes:
        count: how often the report was made.
        sent_count: the count that the API has.
        first: when it was sent first; empty before.
        not_before_s: when it may be sent again (monotonic).
        repeats: the delays between events.
    """

    count: int = 0
    sent_count: int = 0
    first: str = ""
    not_before_s: float = 0.0
    repeats: Backoff = field(default_factory=lambda: Backoff(REPEAT_S, LONGEST_REPEAT_S))


class EventRecorder:
    """Events and the condition of one pod."""

    def __init__(self, pod: PodReference, api: PodApi) -> None:
        self._pod = pod
        self._api = api
        self._events: dict[Report, _Event] = {}
        self._condition: PodCondition | None = None
        self._condition_sent: PodCondition | None = None
        self._condition_not_before_s = 0.0
        self._forbidden: set[str] = set()
        self._not_before_s = 0.0
        self._backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
        self._is_waiting = False

    def add(self, report: Report) -> None:
        """Take a report. Equal ones are counted."""
        if report in self._events or len(self._events) < _MOST_REPORTS:
            self._events.setdefault(report, _Event()).count += 1

    def set_condition(self, condition: PodCondition) -> None:
        """Take the newest condition. Earlier ones that were not sent are dropped."""
        self._condition = condition

    @property
    def sees_pod(self) -> bool:
        """Whether :meth:`see_pod` may get an answer."""
        return "condition" not in self._forbidden

    def see_pod(self) -> dict[str, Any] | None:
        """The pod as the API has it; None if it cannot be had now."""
        try:
            return self._api.see_pod(self._pod.namespace, self._pod.name, self._pod.uid)
        except (ApiUnavailable, ApiConflict):
            return None
        except ClusterError as error:
            self._give_up("condition", error)
            return None

    def send(self, now_s: float, *, last: bool = False) -> None:
        """Send what is due. Takes at most one time-out of the API. Never raises.

        Args:
            now_s: monotonic.
            last: this is the last call, so send everything now.
        """
        if now_s < self._not_before_s and not last:
            return
        try:
            self._send_condition(now_s, last=last)
            for report, event in self._events.items():
                due = last or now_s >= event.not_before_s
                if due and event.count > event.sent_count and "events" not in self._forbidden:
                    self._send_event(report, event)
                    event.not_before_s = now_s + event.repeats.next_s()
        except (ApiUnavailable, ApiConflict) as error:
            self._wait(error, now_s)
        except ClusterError as error:  # for example NotInCluster
            self._forbidden |= {"events", "condition"}
            logs.event(log, "nothing can be reported", logging.WARNING, why=error.line())
        else:
            self._backoff.reset()
            self._is_waiting = False

    def _wait(self, error: ClusterError, now_s: float) -> None:
        asked_s = error.retry_after_s if isinstance(error, ApiUnavailable) else 0.0
        if not self._is_waiting:
            self._is_waiting = True
            logs.event(log, "reports wait", logging.WARNING, why=error.line())
        self._not_before_s = now_s + max(self._backoff.next_s(), asked_s)

    def _send_condition(self, now_s: float, *, last: bool) -> None:
        wanted = self._condition
        if wanted is None or wanted == self._condition_sent or "condition" in self._forbidden:
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
            self._api.patch_pod_status(
                self._pod.namespace,
                self._pod.name,
                {"metadata": {"uid": self._pod.uid}, "status": {"conditions": [body]}},
            )
        except (ApiForbidden, ApiNotFound, ApiGone, ApiRefused) as error:
            self._give_up("condition", error)
        self._condition_sent = wanted
        self._condition_not_before_s = now_s + _CONDITION_INTERVAL_S

    def _send_event(self, report: Report, event: _Event) -> None:
        pod, count = self._pod, event.count
        event.first = event.first or _now()
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{pod.name}.{secrets.token_hex(8)}",
                "namespace": pod.namespace,
            },
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
            "firstTimestamp": event.first,
            "lastTimestamp": _now(),
            "count": count,
        }
        try:
            self._api.create_event(pod.namespace, body)
        except (ApiForbidden, ApiNotFound, ApiGone, ApiRefused) as error:
            self._give_up("events", error)
        event.sent_count = count

    def _give_up(self, what: str, error: ClusterError) -> None:
        """Log it once, and go on without reports: mounts work all the same."""
        self._forbidden.add(what)
        logs.event(log, f"no {what} will be reported", logging.WARNING, why=error.line())


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shortened(message: str) -> str:
    data = message.encode()
    if len(data) <= _MESSAGE_BYTES:
        return message
    return data[: _MESSAGE_BYTES - 4].decode(errors="ignore") + " …"
