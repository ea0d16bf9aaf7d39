"""Which containers have lost a bucket at a path of their own, by the API and the status."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sidecar.mounter.reporting.lost_mounts import LostMounts, lost_in, replaced
from sidecar.mounter.reporting.pod_reports import Observer, condition
from tests.reporting.status_documents import status, volume

REMOUNTED_AT = 1_800_000_000.7


def remounted(**changes: Any) -> dict[str, Any]:
    return volume(**{"remounted_at": REMOUNTED_AT, **changes})


def container(name: str, path: str = "/models", sub_path: str = "outputs/models") -> dict[str, Any]:
    return {"name": name, "volumeMounts": [{"mountPath": path, "subPath": sub_path}]}


def pod(started_s: float | None, *containers: dict[str, Any]) -> dict[str, Any]:
    """Each of them started ``started_s`` after the mount; None: it does not run."""
    state: dict[str, Any] = {"waiting": {"reason": "CrashLoopBackOff"}}
    if started_s is not None:
        at = dt.datetime.fromtimestamp(REMOUNTED_AT + started_s, dt.UTC)
        state = {"running": {"startedAt": at.strftime("%Y-%m-%dT%H:%M:%SZ")}}
    every = list(containers or (container("main"),))
    statuses = [{"name": each["name"], "state": state} for each in every]
    return {"spec": {"containers": every}, "status": {"containerStatuses": statuses}}


def test_a_container_that_was_started_before_the_mount_has_lost_it() -> None:
    volumes = replaced(status("ready", remounted(), remounted(name="other", remounted_at=None)))
    assert lost_in(volumes, pod(-60)) == {"outputs/models": ["main"]}
    assert lost_in(volumes, pod(-0.1)) == {"outputs/models": ["main"]}
    assert lost_in(volumes, pod(+1)) == {}
    assert lost_in(volumes, pod(None)) == {}
    without = container("main", sub_path="")
    assert lost_in(volumes, pod(-60, without, container("two"))) == {"outputs/models": ["two"]}
    assert lost_in(volumes, pod(-60, container("main", "/elsewhere"))) == {}


def test_it_is_asked_until_every_container_was_started_again() -> None:
    lost = LostMounts()
    lost.look_at_status(status("ready", remounted(remounted_at=None)))
    assert not lost.is_due(0.0)
    lost.look_at_status(status("ready", remounted()))
    assert lost.is_due(0.0)
    assert not lost.look_at_pod(None, 0.0)  # no answer
    assert not lost.is_due(0.1)
    assert lost.is_due(10.0)
    assert lost.look_at_pod(pod(-60), 10.0)
    assert lost.containers == {"outputs/models": ["main"]}
    assert not lost.look_at_pod(pod(-60), 20.0)
    assert lost.is_due(30.0)
    assert lost.look_at_pod(pod(+5), 30.0)
    assert lost.containers == {}
    assert not lost.is_due(40.0)


def test_a_reporter_that_knows_nothing_yet_tells_also_that_nothing_is_lost() -> None:
    """Its predecessor may have told otherwise."""
    lost = LostMounts()
    lost.look_at_status(status("ready", remounted(lost_in=["main"])))
    assert lost.look_at_pod(pod(+5), 0.0)
    assert lost.containers == {}


def test_where_the_pod_cannot_be_seen_it_is_told_once() -> None:
    lost = LostMounts()
    lost.look_at_status(status("ready", remounted()))
    assert lost.is_due(0.0)
    [report] = lost.give_up()
    assert report.message.startswith("SC1095 MOUNT_LOST: volume outputs/models: containers cannot")
    assert not lost.is_due(10.0)


def test_the_condition_and_one_event_say_it() -> None:
    observer = Observer({"outputs/models": 1000})
    assert observer.look_at_status(status("ready", remounted())) == []
    lost = status("ready", remounted(lost_in=["main"]))
    [report] = observer.look_at_status(lost)
    assert report.reason == "MountLost"
    told = "container `main` cannot reach `/models` any more (ENOTCONN), until started again"
    assert report.message == f"SC1095 MOUNT_LOST: volume outputs/models: {told}"
    assert observer.look_at_status(lost) == []
    found = condition(lost)
    assert found == ("False", "MountLost", report.message)
    again = status("ready", remounted(lost_in=["main"], remounted_at=REMOUNTED_AT + 60))
    assert len(observer.look_at_status(again)) == 1
