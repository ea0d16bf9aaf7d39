"""Turns status documents and metrics into reports about a pod's mounts. Pure: no I/O.

Every report carries the stable code, so that the event, the log, the metric and the termination
message name the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from sidecar.contract.spec import volume_label
from sidecar.errors import (
    AccessDenied,
    LoginRejected,
    MountLost,
    NotSaved,
    SpoolFull,
    WorkerHung,
    WorkerLost,
    printable,
)
from sidecar.metrics import VolumeTotals

CONDITION: Final = "mount-sidecar.io/Ready"

REFUSED_CODES: Final = (AccessDenied.code, LoginRejected.code)
MOUNT_LOST: Final = "MountLost"
_REFUSED: Final = "CredentialsRefused"
_RECOVERED: Final = "Recovered"
_RESTARTED: Final = "Restarted"
_RESTARTED_TEXT: Final = (
    f"{MountLost.code} {MountLost.name}: the sidecar ended and is started again: calls give "
    "ENOTCONN until it is ready; on files and directories that were open they always will"
)
_ADVICE: Final = {
    LoginRejected.code: "; calls wait for a new key: put one into the secret, which takes up to "
    "90 s to come here and needs no restart",
}
_NEARLY_FULL: Final = 0.9
_RELAXED: Final = 0.7
"""Below this part, the spool may be reported as nearly full again."""
_NAMED_FILES: Final = 10

Document = dict[str, Any]


class Report(NamedTuple):
    """One thing worth an event. Equal ones are one event with a count."""

    reason: str
    message: str
    kind: Literal["Normal", "Warning"] = "Warning"


class PodCondition(NamedTuple):
    """The pod's condition ``mount-sidecar.io/Ready``."""

    status: Literal["True", "False"]
    reason: str
    message: str


def condition(status: Document) -> PodCondition | None:
    """The pod's condition by a status document; None while nothing is known yet.

    A worker that is being replaced changes nothing: programs wait only for milliseconds.
    """
    if status["ready"]:
        for volume in status["volumes"]:
            error = volume["error"]
            if error is not None and error["code"] != WorkerLost.code:
                reason = _failing(error) if error in volume["failing"] else _reason(error)
                return PodCondition("False", reason, f"volume {_label(volume)}: {_line(error)}")
        for volume in status["volumes"]:
            if volume["lost_in"]:
                return PodCondition("False", MOUNT_LOST, mount_lost(volume).message)
        return PodCondition("True", "Mounted", f"{len(status['volumes'])} volume(s) are usable")
    if status["phase"] == "starting" and status["waiting"]:
        return PodCondition("False", "Starting", status["waiting"])
    if status["phase"] == "starting" and status["restarted"]:
        return PodCondition("False", _RESTARTED, _RESTARTED_TEXT)
    if status["phase"] == "failed":
        return PodCondition("False", "MountFailed", _line(status["error"]))
    if status["phase"] in ("draining", "stopped"):
        return PodCondition("False", "Stopped", "what was written is being saved, or was")
    return None


_HEALED: Final = {
    "resend": ("Healed", "the next one went on, and programs saw nothing"),
    "remount": (
        "Remounted",
        "it was mounted anew: calls in flight got ECONNABORTED or ENOTCONN, as do open files",
    ),
}
"""The outcome for a worker's mount: the event's reason, and what programs saw of it."""


@dataclass(slots=True)
class Observer:
    """Compares each status document and each count with the previous ones, and reports changes.

    Attributes:
        spool_bytes: the budget of each bucket's spool, by the volume's label.
    """

    spool_bytes: Mapping[str, int]
    _healed: dict[tuple[str, str], int] = field(default_factory=dict)
    _nearly_full: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    _lost: dict[str, float] = field(default_factory=dict)

    def look_at_status(self, status: Document) -> list[Report]:
        """Reports of what is new in a status document (:mod:`sidecar.mounter.system.status`)."""
        reports = []
        if status["restarted"]:
            reports += self._first("restarted", Report(_RESTARTED, _RESTARTED_TEXT))
            if status["ready"]:
                what = "the sidecar is ready again"
                reports += self._first("ready again", Report(_RECOVERED, what, "Normal"))
        for volume in status["volumes"]:
            reports += self._volume(volume, status)
        if status["phase"] == "failed" and status["error"]:
            reports += self._first("failed", Report("MountFailed", _line(status["error"])))
        return reports

    def look_at_totals(self, totals: VolumeTotals) -> list[Report]:
        """Reports of what is new in the workers' counts."""
        reports = []
        for volume, used_bytes in totals.spool_used_bytes.items():
            spool_bytes = self.spool_bytes[volume]
            part = used_bytes / spool_bytes if spool_bytes else 0.0
            if part >= _NEARLY_FULL and volume not in self._nearly_full:
                self._nearly_full.add(volume)
                what = f"volume {volume}: the spool holds {part:.0%} of {spool_bytes} bytes"
                why = "writes get ENOSPC when it is full; is the store slow, or away?"
                reports.append(
                    Report("SpoolNearlyFull", f"{SpoolFull.code} {SpoolFull.name}: {what}; {why}")
                )
            elif part < _RELAXED:
                self._nearly_full.discard(volume)
        for volume, limit_bytes in totals.cache_limit_bytes.items():
            if not limit_bytes:
                what = (
                    f"volume {volume}: its disk cache keeps nothing, and every read asks the store"
                )
                why = "a fifth of the disk stays free for others, and no more is free"
                reports += self._first(f"cache of {volume}", Report("CacheOff", f"{what}: {why}"))
        return reports

    def _volume(self, volume: Document, status: Document) -> list[Report]:
        label = _label(volume)
        reports = []
        for way, (reason, seen) in _HEALED.items():
            count = volume["healed"].get(way, 0)
            if count > self._healed.get((label, way), 0):
                what = f"volume {label}: its worker ended; {seen}"
                reports.append(Report(reason, f"{WorkerLost.code} {WorkerLost.name}: {what}"))
            self._healed[label, way] = count
        error = volume["error"]
        if status["ready"]:
            for failure in volume["failing"]:
                reports += self._once(label, _failing(failure), failure)
            if error not in [None, *volume["failing"]] and error["code"] != WorkerLost.code:
                reports += self._once(label, _reason(error), error)
        warmed = volume["warmed"]
        if warmed is not None and warmed["state"] != "running":
            how = "is warmed up" if warmed["state"] == "done" else "is warmed up in part"
            what = f"volume {label} {how}: {warmed['names']} names, {warmed['bytes']} bytes"
            reports += self._first(f"warmed {label}", Report("WarmedUp", what, "Normal"))
        if volume["lost_in"] and self._lost.get(label) != volume["remounted_at"]:
            self._lost[label] = volume["remounted_at"]
            reports.append(mount_lost(volume))
        over = {key for key in self._told if key.startswith(f"{label} ")}
        if error is None and over:
            self._told -= over
            codes = ", ".join(sorted(key.split()[1] for key in over))
            what = f"volume {label}: works again; {codes} is over"
            reports.append(Report(_RECOVERED, what, "Normal"))
        stopped = status["phase"] == "stopped"
        return [*reports, *self._end(volume, label, stopped, status["time_is_up"])]

    def _end(self, volume: Document, label: str, stopped: bool, time_is_up: bool) -> list[Report]:
        """Reports on the last minute, sent before it is over: it may end at any moment."""
        names = _unsaved(volume)
        if names and not (stopped or time_is_up):
            what = f"volume {label}: the pod is ending; not saved yet: {names}"
            return self._first(f"saving {label}", Report("Saving", what, "Normal"))
        if names:
            what = f"{NotSaved.code} {NotSaved.name}: volume {label}: not saved: {names}"
            return self._first(f"unsaved {label}", Report("NotSaved", what))
        if stopped and f"saving {label}" in self._told:
            what = f"volume {label}: everything is saved"
            return self._first(f"saved {label}", Report("Saved", what, "Normal"))
        return []

    def _once(self, label: str, reason: str, error: Document) -> list[Report]:
        """A report, unless one with this volume's code was made already."""
        advice = _ADVICE.get(error["code"], "")
        report = Report(reason, f"volume {label}: {_line(error)}{advice}")
        return self._first(f"{label} {error['code']}", report)

    def _first(self, key: str, report: Report) -> list[Report]:
        """A report, unless one with this key was made already."""
        if key in self._told:
            return []
        self._told.add(key)
        return [report]


def mount_lost(volume: Document) -> Report:
    """The report of a volume whose mount was replaced below a container's sub-path."""
    who = ", ".join(f"container `{name}`" for name in volume["lost_in"]) or "containers"
    what = f"{who} cannot reach `{volume['path']}` any more (ENOTCONN), until started again"
    text = f"{MountLost.code} {MountLost.name}: volume {_label(volume)}: {what}"
    return Report(MOUNT_LOST, text)


def _unsaved(volume: Document) -> str:
    """How many files are not saved, with some names and bytes; "" if all are saved."""
    count, shown = volume["unsaved_count"], volume["unsaved"][:_NAMED_FILES]
    names = [f"{printable(file['key'])} ({file['size_bytes']} bytes)" for file in shown]
    return f"{count} file(s), {', '.join(names)}{' …' * (count > len(names))}" if count else ""


def _label(volume: Document) -> str:
    return volume_label(volume["kind"], volume["name"])


def _reason(error: Document) -> str:
    return "WorkerHung" if error["code"] == WorkerHung.code else "MountFailed"


def _failing(failure: Document) -> str:
    return _REFUSED if failure["code"] in REFUSED_CODES else "StoreFails"


def _line(error: Document) -> str:
    return f"{error['code']} {error['name']}: {error['message']}"
