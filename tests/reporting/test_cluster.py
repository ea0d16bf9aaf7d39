"""A running sidecar and the API server: what is reported, and what the server's failures do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Options, Times
from sidecar.mounter.reporting.event_recorder import (
    LONGEST_REPEAT_S,
    REPEAT_S,
    EventRecorder,
    PodReference,
)
from sidecar.mounter.reporting.pod_api import PodApi
from sidecar.mounter.reporting.pod_reports import PodCondition, Report
from tests.mount.buckets import Refusing
from tests.reporting.conftest import POD, InPod
from tests.support.clouds import Cloud
from tests.support.killer import kill_worker
from tests.support.kubernetes_api import DROP, TOKEN, KubernetesApi
from tests.support.servers import TlsFiles

POD_IDENTITY = PodReference("train", "team", "uid-of-the-pod", "node-1")
CONDITION = "mount-sidecar.io/Ready"


def conditions(api: KubernetesApi) -> dict[str, Any]:
    found = api.objects[POD]["status"].get("conditions", [])
    return {item["type"]: item for item in found}


def reasons(api: KubernetesApi) -> list[str]:
    return [event["reason"] for event in api.events()]


# --- the whole sidecar ----------------------------------------------------------------------


def test_from_ready_over_healing_to_stopped(api: KubernetesApi, in_pod: InPod) -> None:
    with in_pod() as sidecar:
        api.wait_for(lambda: conditions(api).get(CONDITION, {}).get("status") == "True", "ready")
        assert api.requests("POST", "events") == []  # There was no problem.
        kill_worker(sidecar, "train")
        api.wait_for(lambda: reasons(api) == ["Healed"], "healed")
        assert sidecar.stop() == 0
    [event] = api.events()
    assert event["involvedObject"]["uid"] == "uid-of-the-pod"
    assert event["type"] == "Warning"
    assert event["message"].startswith("SC1088 WORKER_LOST: volume data/train: ")
    assert event["metadata"]["name"].startswith("train.")
    assert conditions(api)[CONDITION]["status"] == "False"
    assert conditions(api)[CONDITION]["reason"] == "Stopped"


def test_the_condition_follows_what_the_store_fails_at(
    api: KubernetesApi, in_pod: InPod, tmp_path: Path
) -> None:
    store = Refusing()
    store.refusal = 500, b""
    path = tmp_path / "m/file"
    options = Options(retry_s=0)
    settings: dict[str, Any] = {"secret": store.secret, "bucket": "bucket", "options": options}
    with store.server, in_pod(read_only=True, **settings) as sidecar:
        api.wait_for(lambda: conditions(api).get(CONDITION, {}).get("status") == "True", "ready")
        for _ in range(2):
            with pytest.raises(OSError, match="Errno 5"):
                path.read_bytes()
        api.wait_for(lambda: conditions(api)[CONDITION]["status"] == "False", "the failure")
        api.wait_for(lambda: reasons(api) == ["StoreFails"], "its event")
        told = conditions(api)[CONDITION]
        assert told["reason"] == "StoreFails"
        assert told["message"].startswith("volume data/train: SC1045 UNAVAILABLE: S3 bucket ")
        assert api.events()[0]["message"] == told["message"]
        store.refusal = None

        def works() -> bool:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read() == b"content"
            return bool(conditions(api)[CONDITION]["status"] == "True")

        api.wait_for(works, "recovery")
        assert sidecar.stop() == 0
    assert reasons(api) == ["StoreFails", "Recovered"]


def test_a_call_waits_for_a_rotated_key_longer_than_for_an_outage(
    api: KubernetesApi, in_pod: InPod, tmp_path: Path
) -> None:
    """What to do is told while it waits, and that it is over."""
    store = Refusing()
    store.refusal = 403, b"<Error><Code>InvalidAccessKeyId</Code></Error>"
    settings: dict[str, Any] = {"secret": store.secret, "bucket": "bucket"}
    settings["options"] = Options(retry_s=10)
    with store.server, in_pod(read_only=True, **settings) as sidecar, ThreadPoolExecutor() as one:
        reading = one.submit((tmp_path / "m/file").read_bytes)
        api.wait_for(lambda: reasons(api) == ["CredentialsRefused"], "its event")
        assert "put one into the secret" in api.events()[0]["message"]
        api.wait_for(
            lambda: conditions(api)[CONDITION]["reason"] == "CredentialsRefused", "the condition"
        )
        with pytest.raises(TimeoutError):
            reading.result(12)
        store.refusal = None
        assert reading.result() == b"content"
        api.wait_for(lambda: reasons(api)[1:] == ["Recovered"], "the end")
        assert conditions(api)[CONDITION]["status"] == "True"
        assert sidecar.stop() == 0


def test_a_store_that_is_silent_at_the_start_is_named_soon(
    api: KubernetesApi, in_pod: InPod, s3: Cloud
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        right = json.loads(s3.server.credentials_json())
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sidecar = in_pod(secret=json.dumps({**right, "AWS_ENDPOINT_URL": endpoint}))
        try:
            sidecar.start(wait=False)
            api.wait_for(lambda: CONDITION in conditions(api), "a condition")
            told = conditions(api)[CONDITION]
            assert (told["status"], told["reason"]) == ("False", "Starting")
            said = r"waiting since 20\S+Z: SC1047 ENDPOINT_UNREACHABLE: volume data/train \(s3://"
            assert re.match(said, told["message"])
            assert "msg=waiting since=20" in sidecar.log()
            assert sidecar.status()["phase"] == "starting"
        finally:
            sidecar.clean_up()


def test_a_sidecar_that_was_killed_says_so_when_it_is_back(
    api: KubernetesApi, in_pod: InPod, tmp_path: Path
) -> None:
    with in_pod() as sidecar:
        (tmp_path / "m/file").write_bytes(b"content")
        sidecar.kill()
        sidecar.start(wait=False)
        api.wait_for(lambda: reasons(api) == ["Restarted", "Recovered"], "both events")
        assert "SC1095 MOUNT_LOST: " in api.events()[0]["message"]
        assert (tmp_path / "m/file").read_bytes() == b"content"
        api.wait_for(lambda: conditions(api)[CONDITION]["status"] == "True", "the condition")
        assert sidecar.stop() == 0


def test_what_is_not_saved_is_told_before_a_forced_end(
    api: KubernetesApi, in_pod: InPod, tmp_path: Path, s3: Cloud
) -> None:
    times = Times(ready_timeout_s=30, grace_margin_s=5)
    with in_pod(options=Options(save_s=3600), times=times) as sidecar:
        file = os.open(tmp_path / "m/file", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"content")
        s3.server.pause()
        try:
            (sidecar.state / "stopping").write_text("8\n")
            api.wait_for(lambda: "NotSaved" in reasons(api), "it is told")
            sidecar.kill()
        finally:
            s3.server.resume()
        with contextlib.suppress(OSError):
            os.close(file)


def test_a_mount_that_fails_says_why_before_the_container_ends(
    api: KubernetesApi, in_pod: InPod
) -> None:
    sidecar = in_pod(bucket="no-such-bucket")
    assert sidecar.start(wait=False).wait() == 3
    [event] = api.events()
    assert event["reason"] == "MountFailed"
    assert event["message"].startswith("SC1042 BUCKET_NOT_FOUND: volume data/train ")
    assert conditions(api)[CONDITION]["message"] == event["message"]
    assert f"error {event['message']}\n" == sidecar.termination_message.read_text()


def test_a_refused_login_is_told_without_the_key(
    api: KubernetesApi, in_pod: InPod, s3: Cloud
) -> None:
    right = json.loads(s3.server.credentials_json())
    secret = json.dumps({**right, "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"})
    assert in_pod(secret=secret).start(wait=False).wait() == 3
    [event] = api.events()
    assert event["message"].startswith("SC1043 LOGIN_REJECTED: ")
    sent = json.dumps([asked.body for asked in api.asked])
    assert "hunter2" not in sent


def test_no_permission_is_logged_once_and_everything_else_works(
    api: KubernetesApi, in_pod: InPod, tmp_path: Path
) -> None:
    api.fail("PATCH", "status", 403, times=50)
    api.fail("POST", "events", 403, times=50)
    with in_pod() as sidecar:
        for _ in range(2):
            kill_worker(sidecar, "train")
            api.wait_for(lambda: api.requests("POST", "events"), "a first try")
        (tmp_path / "m" / "file").write_text("saved")
        assert sidecar.stop() == 0
        log = sidecar.log()
    assert log.count("no events will be reported") == 1
    assert log.count("no condition will be reported") == 1
    assert "SC1100 API_FORBIDDEN: cannot create events in `team`: 403 Forbidden" in log
    assert len(api.requests("POST", "events")) == 1


def test_an_api_that_hangs_delays_neither_the_mount_nor_the_drain(
    api: KubernetesApi, in_pod: InPod, tmp_path: Path
) -> None:
    api.hang.set()
    with in_pod() as sidecar:
        kill_worker(sidecar, "train")
        (tmp_path / "m" / "file").write_text("saved")
        assert sidecar.stop() == 0
    assert sidecar.status()["volumes"][0]["unsaved"] == []
    assert sidecar.processes() == []


def test_no_api_at_all(api: KubernetesApi, in_pod: InPod, tmp_path: Path) -> None:
    sidecar = in_pod()
    (tmp_path / "account/token").unlink()
    with sidecar:
        sidecar.wait_for(lambda: "nothing can be reported" in sidecar.log())
        assert sidecar.stop() == 0
    assert sidecar.log().count("SC1106 NOT_IN_CLUSTER") == 1


def test_outside_a_pod_there_is_no_reporter(in_pod: InPod) -> None:
    sidecar = in_pod()
    del sidecar._environment["SIDECAR_POD_UID"]
    with sidecar:
        assert sidecar.children_named("reporter") == []


def test_a_job_completes_without_native_sidecars(api: KubernetesApi, in_pod: InPod) -> None:
    """Whatever happens to the watch; but not while a failed container will be restarted."""
    with in_pod(plain=True) as sidecar:
        watched(api, 1)
        api.say_to_watches(DROP)
        watched(api, 2)
        gone = {"type": "ERROR", "object": {"code": 410, "reason": "Gone", "message": "too old"}}
        api.say_to_watches(gone)
        watched(api, 3)
        api.fail("GET", "pods", 429, Retry_After="1")
        api.end_watches()
        watched(api, 4)
        end(api, exit_code=1)
        end(api, exit_code=0)
        assert sidecar.wait() == 0
        assert "experiment ended" in sidecar.log()


def test_a_watch_that_is_not_allowed_is_said_once(api: KubernetesApi, in_pod: InPod) -> None:
    api.fail("GET", "pods", 403, times=50)
    with in_pod(plain=True) as sidecar:
        sidecar.wait_for(lambda: "the pod will not complete by itself" in sidecar.log())
        assert "SC1100 API_FORBIDDEN: cannot watch pods in `team`" in sidecar.log()
        assert sidecar.stop() == 0
    assert len(api.requests("GET", "pods$")) == 1


def watched(api: KubernetesApi, times: int) -> None:
    """Wait until the pod is being watched for the ``times``-th time."""
    api.wait_for(lambda: api.watches_opened == times, f"watch number {times}")


def end(api: KubernetesApi, *, exit_code: int) -> None:
    document = json.loads(json.dumps(api.objects[POD]))
    statuses = document["status"]["containerStatuses"]
    statuses[1]["state"] = {"terminated": {"exitCode": exit_code}}
    api.put(POD, document)


# --- the recorder of events, with the test's own clock -------------------------------------------


@pytest.fixture
def recorder(api: KubernetesApi, tmp_path: Path) -> Iterator[EventRecorder]:
    client = PodApi(api.service_account(tmp_path / "account"))
    yield EventRecorder(POD_IDENTITY, client)
    client.close()


REPORT = Report("CredentialsRefused", "SC1043 LOGIN_REJECTED: volume data/d")
LATER_S = REPEAT_S + 1


def test_many_of_one_kind_are_few_events_with_a_count(
    api: KubernetesApi, recorder: EventRecorder
) -> None:
    for second in range(50):
        recorder.add(REPORT)
        recorder.send(float(second))
    recorder.send(LATER_S)
    recorder.send(2 * LATER_S)
    first, last = api.events()
    assert (first["count"], last["count"]) == (1, 50)
    assert first["firstTimestamp"] == last["firstTimestamp"]
    # A right to change events would be the experiment's too, and for other pods' events.
    assert api.requests("PATCH", "events") == api.requests("GET", "events") == []


def test_what_goes_on_for_hours_is_told_ever_less_often(
    api: KubernetesApi, recorder: EventRecorder
) -> None:
    hour_s = 3600
    for second in range(4 * hour_s):
        recorder.add(REPORT)
        recorder.send(float(second))
    assert len(api.events()) <= 5 + 4 * hour_s / LONGEST_REPEAT_S
    assert api.events()[-1]["count"] > 3 * hour_s


@pytest.mark.parametrize("status", [404, 410])
def test_a_namespace_that_goes_away_ends_the_events_only(
    api: KubernetesApi, recorder: EventRecorder, status: int
) -> None:
    api.fail("POST", "events", status)
    recorder.add(REPORT)
    recorder.set_condition(PodCondition("True", "Mounted", "one"))
    recorder.send(0.0)
    recorder.add(REPORT)
    recorder.send(LATER_S)
    assert len(api.requests("POST", "events")) == 1
    assert conditions(api)[CONDITION]["status"] == "True"


def test_a_name_that_is_taken_is_not_kept(api: KubernetesApi, recorder: EventRecorder) -> None:
    api.fail("POST", "events", 409)
    recorder.add(REPORT)
    recorder.send(0.0)
    assert api.events() == []
    recorder.send(2.0)
    assert len(api.events()) == 1
    first, second = api.requests("POST", "events")
    assert first.body["metadata"]["name"] != second.body["metadata"]["name"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    api: KubernetesApi, recorder: EventRecorder, status: int
) -> None:
    api.fail("POST", "events", status, Retry_After="30")
    recorder.add(REPORT)
    for second in (0.0, 1.0, 29.0):
        recorder.send(second)
    assert len(api.requests("POST", "events")) == 1
    recorder.send(31.0)
    assert len(api.events()) == 1


def test_the_last_words_do_not_wait(api: KubernetesApi, recorder: EventRecorder) -> None:
    recorder.add(REPORT)
    recorder.send(0.0)
    recorder.add(REPORT)
    recorder.set_condition(PodCondition("False", "Stopped", "stopped"))
    recorder.send(1.0, last=True)
    assert [event["count"] for event in api.events()] == [1, 2]
    assert conditions(api)[CONDITION]["reason"] == "Stopped"


def test_the_newest_condition_is_sent_and_other_conditions_stay(
    api: KubernetesApi, recorder: EventRecorder
) -> None:
    theirs = {"type": "Initialized", "status": "True"}
    api.objects[POD]["status"]["conditions"] = [theirs]
    recorder.set_condition(PodCondition("True", "Mounted", "one"))
    recorder.set_condition(PodCondition("True", "Mounted", "two"))
    recorder.send(0.0)
    recorder.send(10.0)
    assert len(api.requests("PATCH", "status")) == 1
    assert conditions(api)["Initialized"] == theirs
    assert conditions(api)[CONDITION]["message"] == "two"


def test_a_token_that_was_replaced_is_used_at_once(
    api: KubernetesApi, recorder: EventRecorder, tmp_path: Path
) -> None:
    recorder.set_condition(PodCondition("True", "Mounted", "one"))
    recorder.send(0.0)
    (tmp_path / "account/token").write_text("the next token\n")
    recorder.set_condition(PodCondition("False", "Stopped", "stopped"))
    recorder.send(10.0)
    assert [a.token for a in api.requests("PATCH", "status")] == [TOKEN, "the next token"]


def test_a_server_that_the_authority_does_not_know_gets_no_token(
    api: KubernetesApi, recorder: EventRecorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the authority is replaced."""
    authority = tmp_path / "account/ca.crt"
    right = authority.read_text()
    authority.write_text(TlsFiles(tmp_path / "other").certificate.read_text())
    recorder.set_condition(PodCondition("True", "Mounted", "one"))
    recorder.send(0.0)
    assert api.asked == []
    [record] = caplog.records
    why = record.__dict__["fields"]["why"]
    assert "SC1104 API_UNAVAILABLE: cannot patch the status of pods in `team`: no conn" in why
    authority.write_text(right)
    recorder.send(10.0)
    assert conditions(api)[CONDITION]["status"] == "True"


def test_a_message_of_any_length_is_an_event(api: KubernetesApi, recorder: EventRecorder) -> None:
    recorder.add(Report("NotSaved", "é" * 2000))
    recorder.send(0.0)
    [event] = api.events()
    assert len(event["message"].encode()) <= 1024


def test_a_flood_of_different_reports_is_bounded(
    api: KubernetesApi, recorder: EventRecorder
) -> None:
    for number in range(1000):
        recorder.add(Report("MountFailed", f"number {number}"))
    recorder.send(0.0)
    assert len(api.events()) == 100


# --- `sidecar wait` ----------------------------------------------------------------------------


def wait_command(port: int, timeout_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sidecar", "wait", "--port", str(port)]
    return subprocess.Popen(
        [*command, "--timeout", str(timeout_s)],
        stderr=subprocess.PIPE,
        env=os.environ,
        text=True,
    )


def test_wait_returns_when_the_sidecar_is_ready(in_pod: InPod) -> None:
    with in_pod() as sidecar:
        waiting = wait_command(sidecar.status()["http_port"], 30)
        assert waiting.communicate(timeout=60)[1] == ""
        assert waiting.returncode == 0


def test_wait_says_what_was_waited_for(api: KubernetesApi, in_pod: InPod) -> None:
    nobody = wait_command(1, 0)
    assert nobody.communicate(timeout=60)[1] == (
        "error SC1091 READY_TIMEOUT: not ready after 0 s: no sidecar answers on port 1\n"
    )
    assert nobody.returncode == 3
    unreachable = json.dumps(
        {
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        }
    )
    sidecar = in_pod(secret=unreachable)
    try:
        sidecar.start(wait=False)
        sidecar.wait_for(lambda: sidecar_waits(sidecar.state))
        waiting = wait_command(sidecar.status()["http_port"], 0)
        said = waiting.communicate(timeout=60)[1]
        assert said.startswith("error SC1091 READY_TIMEOUT: not ready after 0 s: data/train (SC10")
    finally:
        sidecar.clean_up()


def sidecar_waits(state: Path) -> bool:
    file = state / "status.json"
    if not file.exists():
        return False
    status = json.loads(file.read_text())
    return bool(status["http_port"] and status["volumes"][0]["error"])
