"""The admission server over real TLS, with requests as an API server sends them."""

from __future__ import annotations

import base64
import copy
import json
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest

from tests.control.injection.golden import CATALOGUE
from tests.control.webhook.server import Webhook, new_pair, post, recorded, review, tls_files
from tests.support.waiting import wait_until

REQUESTS = 1000


@pytest.fixture(scope="module")
def webhook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    with Webhook(tmp_path_factory.mktemp("webhook")) as server:
        yield server


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Webhook]:
    with Webhook(tmp_path) as server:
        yield server


def patched(body: bytes, response: dict[str, Any]) -> dict[str, Any]:
    patch = json.loads(base64.b64decode(response["patch"]))
    pod: dict[str, Any] = jsonpatch.apply_patch(json.loads(body)["request"]["object"], patch)
    return pod


@pytest.mark.parametrize(
    "name", ["create-by-job-controller", "create-by-replicaset-controller", "create-dry-run"]
)
def test_a_new_pod_gets_the_sidecar(webhook: Webhook, name: str) -> None:
    body = recorded(name)
    response = review(webhook.connect(), body)
    assert response["uid"] == json.loads(body)["request"]["uid"]
    assert (response["allowed"], response["patchType"]) == (True, "JSONPatch")
    pod = patched(body, response)
    assert pod["spec"]["initContainers"][0]["name"] == "mount-sidecar"
    kubernetes_validate.validate(pod, "1.37", strict=True)
    # The API server calls again if another webhook changed the pod: there is nothing to do.
    again = json.loads(body)
    again["request"]["object"] = pod
    assert "patch" not in review(webhook.connect(), json.dumps(again).encode())


@pytest.mark.parametrize("name", ["update", "create-without-the-label"])
def test_what_was_not_asked_for_is_let_through(webhook: Webhook, name: str) -> None:
    response = review(webhook.connect(), recorded(name))
    assert response == {"uid": response["uid"], "allowed": True}


def test_other_kinds_and_sub_resources_are_let_through(webhook: Webhook) -> None:
    document = json.loads(recorded("create-by-job-controller"))
    changes: list[dict[str, Any]] = [
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"subResource": "eviction"},
        {"object": None, "operation": "DELETE"},
    ]
    for change in changes:
        other = copy.deepcopy(document)
        other["request"].update(change)
        assert review(webhook.connect(), json.dumps(other).encode())["allowed"] is True


def test_a_refusal_says_what_the_resolver_says(webhook: Webhook) -> None:
    response = review(webhook.connect(), recorded("create-of-an-unknown-volume"))
    assert response["allowed"] is False
    assert response["status"] == {
        "status": "Failure",
        "reason": "Invalid",
        "code": 422,
        "message": "SC1020 VOLUME_UNKNOWN: the pod's annotations.data[0]: no data volume is named "
        "`image` (did you mean `images`?); the catalogue declares: images, labels, shared, node",
    }


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'"\xff\xfe',
    "deep": b"[" * 200_000,
    "no review": b'{"kind": "Pod", "apiVersion": "v1"}',
    "v1beta1": b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}',
    "no request": b'{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}',
    "a number": b"1",
    "half a character": recorded("update").replace(b'"UPDATE"', b'"\\uD800"'),
    "half a character in bytes": recorded("update").replace(b'"UPDATE"', b'"\xed\xa0\x80"'),
    "no number": recorded("update").replace(b'"UPDATE"', b"NaN"),
    "a number that is too large": recorded("update").replace(b'"UPDATE"', b"1e999"),
    "a million values": b"[" + b"[]," * 1_000_000 + b"1]",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_review_is_a_bad_request(webhook: Webhook, body: bytes) -> None:
    status, text = post(webhook.connect(), body)
    assert (status, text[:28]) == (400, b"error SC1017 REVIEW_INVALID:")


def test_shapes_that_no_api_server_sends(webhook: Webhook) -> None:
    document = json.loads(recorded("create-by-job-controller"))
    for shape in (
        [],
        {"containers": 1},
        {"containers": [{"volumeMounts": {}}]},
        {"containers": [{"env": [{"name": {}}]}]},
        {"containers": [{}], "volumes": [{"persistentVolumeClaim": {"claimName": "team"}}]},
    ):
        document["request"]["object"]["spec"] = shape
        response = review(webhook.connect(), json.dumps(document).encode())
        assert response["status"]["message"].startswith("SC1012 MANIFEST_INVALID: ")


def test_a_refusal_that_quotes_a_long_name_is_short(webhook: Webhook) -> None:
    document = json.loads(recorded("create-by-job-controller"))
    annotations = document["request"]["object"]["metadata"]["annotations"]
    annotations["mount-sidecar.io/outputs"] = "x" * 100_000
    response = review(webhook.connect(), json.dumps(document).encode())
    message = response["status"]["message"]
    assert message.startswith("SC1020 VOLUME_UNKNOWN: ")
    assert len(message) < 5000


def test_a_huge_request_is_refused_and_a_large_one_answered(webhook: Webhook) -> None:
    document = json.loads(recorded("create-by-job-controller"))
    document["request"]["object"]["metadata"]["annotations"]["large"] = "x" * 150_000
    assert review(webhook.connect(), json.dumps(document).encode())["allowed"] is True
    document["request"]["object"]["metadata"]["annotations"]["large"] = "x" * 9_000_000
    try:
        status, _ = post(webhook.connect(), json.dumps(document).encode())
    except (BrokenPipeError, ConnectionResetError):  # The server need not read all of it.
        status = 413
    assert status == 413
    assert review(webhook.connect(), recorded("update"))["allowed"] is True


def test_other_clients_disturb_nobody(webhook: Webhook) -> None:
    """One without TLS, one that sends nothing, one that stops half-way."""
    with socket.create_connection(("127.0.0.1", webhook.port)) as plain:
        plain.sendall(b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        with socket.create_connection(("127.0.0.1", webhook.port)):
            half = webhook.connect()
            half.putrequest("POST", "/mutate")
            half.putheader("Content-Length", "99")
            half.endheaders(b"{")
            assert review(webhook.connect(), recorded("update"))["allowed"] is True
    assert post(webhook.connect(), b"{}", "/other")[0] == 404


def test_health_and_metrics_are_on_a_port_of_their_own(webhook: Webhook) -> None:
    assert json.loads(webhook.page("/livez")) == {"alive": True}
    review(webhook.connect(), recorded("create-of-an-unknown-volume"))
    page = webhook.page("/metrics")
    assert 'mount_sidecar_webhook_errors_total{code="SC1020"}' in page
    assert 'mount_sidecar_webhook_request_duration_seconds_count{outcome="refused"}' in page
    assert "mount_sidecar_webhook_catalogue_valid 1.0" in page
    assert subprocess.run(["promtool", "check", "metrics"], input=page.encode(), check=True)


def test_a_thousand_requests_while_certificate_and_catalogue_change(
    fresh: Webhook, capsys: pytest.CaptureFixture[str]
) -> None:
    """None fails; new connections get the new certificate, new pods the new catalogue."""
    body = recorded("create-by-job-controller")
    renewed = new_pair()
    done = threading.Event()
    served = {0: 0}

    def change() -> None:
        wait_until(lambda: served[0] >= REQUESTS // 4 or done.is_set(), "a quarter")
        fresh.tls.replace(tls_files(renewed))
        fresh.catalogue.replace({"catalogue.yaml": b"data: {d: {store: s4}}"})  # A typing error.
        wait_until(lambda: served[0] >= REQUESTS // 2 or done.is_set(), "half of them")
        text = CATALOGUE.read_text().replace("s3://images/train", "s3://images/validation")
        fresh.catalogue.replace({"catalogue.yaml": text.encode()})

    changes = threading.Thread(target=change)
    changes.start()
    seconds, urls = [], []
    try:
        connection = fresh.connect()
        for number in range(REQUESTS):
            started_s = time.perf_counter()
            response = review(connection, body)
            seconds.append(time.perf_counter() - started_s)
            served[0] = number + 1
            annotations = patched(body, response)["metadata"]["annotations"]
            spec = json.loads(annotations["mount-sidecar.io/spec"])
            urls.append(spec["volumes"][0]["source"]["url"])
            if number == REQUESTS // 2:
                changes.join()  # so that the rest sees it
    finally:
        done.set()
        changes.join()
    assert sorted(set(urls), key=urls.index) == ["s3://images/train", "s3://images/validation"]
    assert urls[-1] == "s3://images/validation"
    fresh.wait_for_log("certificate read")
    assert review(fresh.connect(renewed), body)["allowed"] is True
    with pytest.raises(ssl.SSLCertVerificationError):
        fresh.connect().connect()
    assert fresh.log().count("catalogue refused, the last one holds") == 1
    assert "SC1002 CATALOGUE_INVALID" in fresh.log()
    quantiles = statistics.quantiles(seconds, n=100)
    with capsys.disabled():
        print(
            f"\n    {REQUESTS} reviews: median {quantiles[49] * 1000:.2f} ms, "
            f"99 % {quantiles[98] * 1000:.2f} ms, longest {max(seconds) * 1000:.2f} ms",
            end=" ",
        )
    assert fresh.stop() == 0


def test_a_pair_that_does_not_match_is_not_used(fresh: Webhook) -> None:
    other = new_pair()
    fresh.tls.replace({"tls.crt": other.certificate, "tls.key": fresh.pair.key})
    fresh.wait_for_log("certificate refused, the last one holds")
    assert review(fresh.connect(), recorded("update"))["allowed"] is True
    assert "PRIVATE KEY" not in fresh.log()


def test_a_start_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    def start(*arguments: str) -> str:
        command = [sys.executable, "-m", "sidecar", "webhook", "--host", "127.0.0.1", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (2, 3)
        return done.stderr

    tls = tmp_path / "tls"
    tls.mkdir()
    assert start("--catalogue", str(tmp_path / "none")).startswith(
        "error SC1002 CATALOGUE_INVALID: "
    )
    assert start("--catalogue", str(CATALOGUE), "--tls", str(tls)).startswith(
        "error SC1018 CERTIFICATE_INVALID: "
    )
    for name, data in tls_files(new_pair()).items():
        (tls / name).write_bytes(data)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        said = start("--catalogue", str(CATALOGUE), "--tls", str(tls), "--port", port)
        assert "error SC1090 PORT_IN_USE: cannot listen on 127.0.0.1 port " in said
