"""`sidecar webhook certificate` against an API server, with and without failures."""

from __future__ import annotations

import base64
import datetime as dt
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sidecar.control.webhook.certificate import issue_certificate, service_names
from tests.control.webhook.server import Webhook, recorded, review
from tests.support.kubernetes_api import KubernetesApi
from tests.support.waiting import wait_until

CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/mount-sidecar"
SECRETS = "/api/v1/namespaces/mount-sidecar/secrets"
SECRET = f"{SECRETS}/mount-sidecar-webhook-tls"


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as server:
        service = {"name": "mount-sidecar-webhook", "namespace": "mount-sidecar", "path": "/mutate"}
        webhook = {
            "name": "inject.mount-sidecar.io",
            "clientConfig": {"service": service},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
        }
        server.put(
            CONFIGURATION,
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": "mount-sidecar"},
                "webhooks": [webhook],
            },
        )
        yield server


def certificate(
    api: KubernetesApi, tmp_path: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sidecar", "webhook", "certificate", *arguments],
        env={**os.environ, "KUBECONFIG": str(api.kubeconfig(tmp_path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def stored(api: KubernetesApi) -> dict[str, bytes]:
    data = api.objects[SECRET]["data"]
    return {key: base64.b64decode(value) for key, value in data.items()}


def bundle(api: KubernetesApi) -> list[x509.Certificate]:
    encoded = api.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"]
    return x509.load_pem_x509_certificates(base64.b64decode(encoded))


def test_installs_once_and_then_changes_nothing(api: KubernetesApi, tmp_path: Path) -> None:
    done = certificate(api, tmp_path)
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr
    assert "PRIVATE" not in done.stderr
    secret = api.objects[SECRET]
    assert secret["type"] == "kubernetes.io/tls"
    assert set(secret["data"]) == {"ca.crt", "tls.crt", "tls.key"}
    webhook = api.objects[CONFIGURATION]["webhooks"][0]
    assert webhook["clientConfig"]["service"]["path"] == "/mutate"  # the rest stays
    before = {path: dict(document) for path, document in api.objects.items()}
    assert certificate(api, tmp_path).stdout == "nothing to do\n"
    assert api.objects == before


def test_the_api_server_can_verify_what_the_webhook_then_serves(
    api: KubernetesApi, tmp_path: Path
) -> None:
    assert certificate(api, tmp_path).returncode == 0
    with Webhook(tmp_path) as webhook:
        webhook.tls.replace({key: stored(api)[key] for key in ("tls.crt", "tls.key")})
        webhook.wait_for_log("certificate read")
        pair = issue_certificate(["unused"], dt.datetime.now(dt.UTC), dt.timedelta(days=1))
        authority = bundle(api)[0].public_bytes(Encoding.PEM)
        trusted = type(pair)(authority, pair.certificate, pair.key)
        assert review(webhook.connect(trusted), recorded("update"))["allowed"] is True
        with pytest.raises(ssl.SSLCertVerificationError):
            webhook.connect(pair).connect()


def test_a_renewal_keeps_the_authority_before_it_until_it_ends(
    api: KubernetesApi, tmp_path: Path
) -> None:
    certificate(api, tmp_path)
    first = stored(api)
    done = certificate(api, tmp_path, "--days", "400", "--renew-before-days", "370")
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr
    assert stored(api)["tls.crt"] != first["tls.crt"]
    newest, before = bundle(api)
    assert newest.public_bytes(Encoding.PEM) == stored(api)["ca.crt"]
    assert before.public_bytes(Encoding.PEM) == first["ca.crt"]


def test_the_authority_is_announced_before_the_pair_is_stored(
    api: KubernetesApi, tmp_path: Path
) -> None:
    """A job that fails half-way must not leave a certificate that cannot be verified."""
    api.fail("POST", SECRETS, 403)
    done = certificate(api, tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        "error SC1100 API_FORBIDDEN: cannot create the secret `mount-sidecar-webhook-tls` in "
        "`mount-sidecar`: 403 Forbidden; its Role must allow it"
    )
    assert len(bundle(api)) == 1
    assert certificate(api, tmp_path).returncode == 0
    assert bundle(api)[0].public_bytes(Encoding.PEM) == stored(api)["ca.crt"]


@pytest.mark.parametrize("spoiled", ["tls.crt", "ca.crt", "other names", "no data"])
def test_a_secret_that_cannot_serve_is_replaced(
    api: KubernetesApi, tmp_path: Path, spoiled: str
) -> None:
    service = "elsewhere" if spoiled == "other names" else "mount-sidecar-webhook"
    names = service_names(service, "mount-sidecar")
    pair = issue_certificate(names, dt.datetime.now(dt.UTC), dt.timedelta(days=365))
    data = {"ca.crt": pair.authority, "tls.crt": pair.certificate, "tls.key": pair.key}
    if spoiled in data:
        data[spoiled] = b"not PEM"
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    metadata = {"name": "mount-sidecar-webhook-tls", "namespace": "mount-sidecar"}
    api.put(SECRET, {"metadata": metadata, "data": None if spoiled == "no data" else encoded})
    done = certificate(api, tmp_path)
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr
    x509.load_pem_x509_certificate(stored(api)["tls.crt"]).verify_directly_issued_by(bundle(api)[0])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PATCH", "mutatingwebhookconfigurations", 409),
        ("POST", SECRETS, 409),
        ("GET", SECRET, 429),
        ("PATCH", "mutatingwebhookconfigurations", 503),
    ],
)
def test_what_passes_is_tried_again(
    api: KubernetesApi, tmp_path: Path, method: str, path: str, status: int
) -> None:
    api.fail(method, path, status, Retry_After="1")
    done = certificate(api, tmp_path)
    assert (done.returncode, done.stdout) == (0, "installed\n"), done.stderr
    assert done.stderr.count("trying again") == 1
    assert bundle(api)[0].public_bytes(Encoding.PEM) == stored(api)["ca.crt"]


def test_two_jobs_at_once_end_with_one_pair_that_can_be_verified(
    api: KubernetesApi, tmp_path: Path
) -> None:
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig(tmp_path))}
    command = [sys.executable, "-m", "sidecar", "webhook", "certificate"]
    jobs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    authorities = [authority.public_bytes(Encoding.PEM) for authority in bundle(api)]
    assert stored(api)["ca.crt"] in authorities


def test_kept_by_a_program_that_stays_until_it_is_told_to_stop(
    api: KubernetesApi, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "webhook", "certificate", "--every-hours", "24"],
            env={**os.environ, "KUBECONFIG": str(api.kubeconfig(tmp_path))},
            stderr=stderr,
        )
    try:
        wait_until(
            lambda: "certificate renewed" in log.read_text(),
            log.read_text,
            running=lambda: keeper.poll() is None,
        )
        assert bundle(api)[0].public_bytes(Encoding.PEM) == stored(api)["ca.crt"]
        keeper.terminate()
        assert keeper.wait(timeout=300) == 0
    finally:
        keeper.kill()
        keeper.wait()


def test_without_the_configuration_it_says_what_to_do(api: KubernetesApi, tmp_path: Path) -> None:
    del api.objects[CONFIGURATION]
    done = certificate(api, tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        "error SC1102 API_NOT_FOUND: cannot read the MutatingWebhookConfiguration "
        "`mount-sidecar`: 404 Not Found; apply the webhook's manifests first"
    )
    assert SECRET not in api.objects


def test_outside_any_cluster(tmp_path: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("KUBECONFIG", None)
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "webhook", "certificate"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith("error SC1106 NOT_IN_CLUSTER: ")
    assert "Traceback" not in done.stderr
