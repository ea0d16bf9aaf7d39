"""Reports from status documents and counts, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import NotFound
from sidecar.metrics import VolumeTotals, read_volume_totals
from sidecar.mounter.reporting.pod_completion import has_ended
from sidecar.mounter.reporting.pod_reports import Observer, PodCondition, Report, condition
from tests.reporting.status_documents import status, volume

SPOOL_BYTES = 1000


ERROR = {"code": "SC1042", "name": "BUCKET_NOT_FOUND", "message": "no bucket `b`; check its name"}


@pytest.fixture
def observer() -> Observer:
    return Observer({"outputs/models": SPOOL_BYTES})


def test_a_failed_mount_is_told_once_with_its_code(observer: Observer) -> None:
    failed = status("failed", error=ERROR)
    [report] = observer.look_at_status(failed)
    assert (report.reason, report.kind) == ("MountFailed", "Warning")
    assert report.message == "SC1042 BUCKET_NOT_FOUND: no bucket `b`; check its name"
    assert observer.look_at_status(failed) == []


def test_each_time_a_mount_healed(observer: Observer) -> None:
    assert observer.look_at_status(status()) == []
    healed = status("ready", volume(healed={"resend": 1, "remount": 0}))
    [report] = observer.look_at_status(healed)
    assert report.reason == "Healed"
    assert "outputs/models" in report.message
    assert observer.look_at_status(healed) == []
    assert observer.look_at_status(status("ready", volume(healed={"resend": 2, "remount": 0})))


def test_a_mount_that_was_made_anew_is_no_healing(observer: Observer) -> None:
    """It says what programs saw, also after workers that were replaced unseen."""
    observer.look_at_status(status("ready", volume(healed={"resend": 3, "remount": 0})))
    [report] = observer.look_at_status(status("ready", volume(healed={"resend": 3, "remount": 1})))
    assert report.reason == "Remounted"
    assert "calls in flight got ECONNABORTED or ENOTCONN" in report.message


def test_a_worker_that_hangs_is_told_before_it_is_replaced(observer: Observer) -> None:
    hung = {"code": "SC1094", "name": "WORKER_HUNG", "message": "no sign of life"}
    hanging = status("ready", volume(error=hung))
    [report] = observer.look_at_status(hanging)
    assert report.reason == "WorkerHung"
    told = "volume outputs/models: SC1094 WORKER_HUNG: no sign of life"
    assert condition(hanging) == PodCondition("False", "WorkerHung", told)


def test_a_mount_that_breaks_while_it_is_used_and_again_after_it_was_well(
    observer: Observer,
) -> None:
    broken = status("ready", volume(state="restarting", error=ERROR))
    [report] = observer.look_at_status(broken)
    assert report.message == f"volume outputs/models: SC1042 BUCKET_NOT_FOUND: {ERROR['message']}"
    assert observer.look_at_status(broken) == []
    observer.look_at_status(status())
    assert len(observer.look_at_status(broken)) == 1


def test_what_the_store_fails_at_is_told_once_for_each_code(observer: Observer) -> None:
    first = {**ERROR, "operation": "list", "first": "then", "last": "then", "count": 1}
    again = {**first, "last": "now", "count": 9}
    other = {**first, "code": "SC1047"}
    [report] = observer.look_at_status(status("ready", volume(error=first, failing=[first])))
    assert report.reason == "StoreFails"
    both = volume(error=other, failing=[again, other])
    assert len(observer.look_at_status(status("ready", both))) == 1
    [report] = observer.look_at_status(status())
    assert report.message.endswith("works again; SC1042, SC1047 is over")
    assert len(observer.look_at_status(status("ready", volume(error=again, failing=[again])))) == 1


def test_before_ready_an_outage_is_only_waited_out(observer: Observer) -> None:
    assert observer.look_at_status(status("starting", volume(state="probing", error=ERROR))) == []


def test_what_is_not_saved_is_named_before_the_end_and_at_the_end(observer: Observer) -> None:
    """A pod whose grace period was shortened ends in between."""
    unsaved = [{"key": f"f{n}", "size_bytes": n, "code": "", "why": ""} for n in range(20)]
    left = volume(unsaved=unsaved, unsaved_count=25)
    for phase in ("ready", "draining"):
        reports = observer.look_at_status(status(phase, left))
        if phase == "ready":
            [report] = reports
            assert (report.reason, report.kind) == ("Saving", "Normal")
            told = "the pod is ending; not saved yet: 25 file(s), f0 (0 bytes), f1 (1 bytes), "
            assert report.message.startswith(f"volume outputs/models: {told}")
        else:
            assert reports == []
    [report] = observer.look_at_status(status("stopped", left))
    assert (report.reason, report.kind) == ("NotSaved", "Warning")
    told = "SC1089 NOT_SAVED: volume outputs/models: not saved: 25 file(s), f0 (0 bytes), f1 ("
    assert report.message.startswith(told)
    assert report.message.endswith(", f9 (9 bytes) …")


def test_names_forge_nothing(observer: Observer) -> None:
    unsaved = [{"key": "a\n\x1b[2J", "size_bytes": 1, "code": "", "why": ""}]
    left = volume(unsaved=unsaved, unsaved_count=1)
    [report] = observer.look_at_status(status("stopped", left))
    assert r"a\n\x1b[2J (1 bytes)" in report.message
    assert report.message.replace("…", "").isprintable()
    error = NotFound("`a\x1b[2J\x9b\udc80` is not in the bucket")
    assert error.message == r"`a\x1b[2J\x9b\udc80` is not in the bucket"


def test_that_everything_is_saved_is_told_if_it_took_long(observer: Observer) -> None:
    assert observer.look_at_status(status("stopped")) == []
    unsaved = [{"key": "f", "size_bytes": 1, "code": "", "why": ""}]
    observer.look_at_status(status("draining", volume(unsaved=unsaved, unsaved_count=1)))
    [report] = observer.look_at_status(status("stopped"))
    assert (report.reason, report.kind) == ("Saved", "Normal")
    assert observer.look_at_status(status("stopped")) == []


@pytest.mark.parametrize(
    ("state", "how"), [("done", "is warmed up"), ("stopped", "is warmed up in part")]
)
def test_a_warm_up_is_told_once_when_it_is_over(observer: Observer, state: str, how: str) -> None:
    warmed = {"state": "running", "names": 3, "bytes": 7}
    assert observer.look_at_status(status("ready", volume(warmed=warmed))) == []
    over = status("ready", volume(warmed={**warmed, "state": state}))
    [report] = observer.look_at_status(over)
    assert (report.reason, report.kind) == ("WarmedUp", "Normal")
    assert report.message == f"volume outputs/models {how}: 3 names, 7 bytes"
    assert observer.look_at_status(over) == []


def test_a_refused_login_is_told_with_what_to_do_and_when_it_is_over(observer: Observer) -> None:
    refused = {**ERROR, "code": "SC1043", "operation": "list", "first": "", "last": "", "count": 1}
    for _ in range(2):  # once for each time that it begins
        [report] = observer.look_at_status(
            status("ready", volume(error=refused, failing=[refused]))
        )
        assert (report.reason, report.kind) == ("CredentialsRefused", "Warning")
        assert "put one into the secret, which takes up to 90 s" in report.message
        again = {**refused, "count": 2}
        assert observer.look_at_status(status("ready", volume(error=again, failing=[again]))) == []
        [report] = observer.look_at_status(status())
        assert report == Report(
            "Recovered", "volume outputs/models: works again; SC1043 is over", "Normal"
        )
        assert observer.look_at_status(status()) == []


def test_a_second_start_is_told_and_that_it_is_ready_again(observer: Observer) -> None:
    again = status("starting", restarted=True)
    [report] = observer.look_at_status(again)
    assert report.reason == "Restarted"
    assert "ENOTCONN" in report.message
    assert condition(again) == PodCondition("False", "Restarted", report.message)
    assert observer.look_at_status(again) == []
    ready = status(restarted=True)
    assert [report.reason for report in observer.look_at_status(ready)] == ["Recovered"]
    assert observer.look_at_status(ready) == []


def test_what_a_start_waits_for_is_the_condition() -> None:
    waiting = status("starting", waiting="waiting since then: SC1047", restarted=True)
    assert condition(waiting) == PodCondition("False", "Starting", "waiting since then: SC1047")


def test_what_is_not_saved_when_the_time_is_up_is_told_before_the_end(observer: Observer) -> None:
    """The kubelet kills the sidecar two seconds after it tells it to stop."""
    left = volume(unsaved=[{"key": "f", "size_bytes": 1, "code": "", "why": ""}], unsaved_count=1)
    assert [r.reason for r in observer.look_at_status(status("ready", left))] == ["Saving"]
    up = status("ready", left, time_is_up=True)
    assert [r.reason for r in observer.look_at_status(up)] == ["NotSaved"]
    assert observer.look_at_status(status("stopped", left, time_is_up=True)) == []


def test_a_disk_without_room_for_the_cache_is_told_once(observer: Observer) -> None:
    def look(limit_bytes: float) -> list[str]:
        found = observer.look_at_totals(VolumeTotals({}, {}, {"data/d": limit_bytes}, {}))
        return [report.reason for report in found]

    assert [look(limit_bytes) for limit_bytes in (1, 0, 0)] == [[], ["CacheOff"], []]


def test_a_spool_is_nearly_full_once_until_it_was_emptied(observer: Observer) -> None:
    def look(used_bytes: float) -> list[str]:
        found = observer.look_at_totals(VolumeTotals({"outputs/models": used_bytes}, {}, {}, {}))
        return [report.reason for report in found]

    looks = [look(used_bytes) for used_bytes in (899, 900, 990, 800, 950, 699, 950)]
    nearly = ["SpoolNearlyFull"]
    assert looks == [[], nearly, [], [], [], [], nearly]


def test_the_condition_follows_ready_and_not_a_worker() -> None:
    mounted = PodCondition("True", "Mounted", "1 volume(s) are usable")
    assert condition(status("starting")) is None
    assert condition(status()) == mounted
    assert condition(status("ready", volume(state="restarting"))) == mounted
    fails = {**ERROR, "operation": "list", "first": "then", "last": "now", "count": 2}
    failing = condition(status("ready", volume(error=fails, failing=[fails])))
    assert failing is not None
    assert failing[:2] == ("False", "StoreFails")
    assert failing.message.startswith("volume outputs/models: SC1042 BUCKET_NOT_FOUND: ")
    refused = {**fails, "code": "SC1043", "name": "LOGIN_REJECTED"}
    refusing = condition(status("ready", volume(error=refused, failing=[fails, refused])))
    assert refusing is not None
    assert refusing[:2] == ("False", "CredentialsRefused")
    failed = condition(status("failed", error=ERROR))
    assert failed is not None
    assert failed[:2] == ("False", "MountFailed")
    assert failed.message.startswith("SC1042 BUCKET_NOT_FOUND: ")
    stopped = condition(status("stopped", ready=False))
    assert stopped is not None
    assert stopped[:2] == ("False", "Stopped")


@pytest.mark.parametrize(
    ("policy", "exit_codes", "ended"),
    [
        ("Never", [0, 0], True),
        ("Never", [1, 0], True),
        ("Never", [0, None], False),
        ("OnFailure", [0, 0], True),
        ("OnFailure", [0, 1], False),  # It will be restarted.
        ("Always", [0, 0], False),
    ],
)
def test_when_an_experiment_has_ended_for_good(
    policy: str, exit_codes: list[int | None], ended: bool
) -> None:
    assert has_ended(pod(policy, exit_codes)) is ended


def test_containers_that_were_not_started_yet_have_not_ended() -> None:
    document = pod("Never", [0, 0])
    del document["status"]["containerStatuses"][1]
    assert not has_ended(document)
    assert not has_ended({"spec": document["spec"], "status": {}})


def pod(policy: str, exit_codes: list[int | None]) -> dict[str, Any]:
    """A pod with the sidecar and a container for each exit code; None for one that runs."""
    names = [f"c{number}" for number in range(len(exit_codes))]
    states: list[dict[str, Any]] = [
        {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        for code in exit_codes
    ]
    running = {"name": "mount-sidecar", "state": {"running": {}}}
    return {
        "metadata": {"name": "train"},
        "spec": {
            "restartPolicy": policy,
            "containers": [{"name": name} for name in ["mount-sidecar", *names]],
        },
        "status": {
            "containerStatuses": [
                running,
                *({"name": n, "state": s} for n, s in zip(names, states, strict=True)),
            ]
        },
    }


COUNTED = """
import sys
from pathlib import Path
from sidecar.metrics import VolumeMetrics
metrics = VolumeMetrics(Path(sys.argv[1]), "outputs/models", sys.argv[2])
metrics.spool_used_bytes.set(950)
"""


def test_what_every_process_of_a_volume_counted_is_added_up(
    tmp_path: Path, observer: Observer
) -> None:
    for identity in ("worker", "reader"):
        command = [sys.executable, "-c", COUNTED, str(tmp_path), identity]
        subprocess.run(command, check=True, timeout=60)
    totals = read_volume_totals(tmp_path)
    assert (totals.spool_used_bytes, totals.read_bytes) == (
        {"outputs/models": 950},
        {"outputs/models": 0},
    )
    found = [report.reason for report in observer.look_at_totals(totals)]
    assert found == ["SpoolNearlyFull"]
